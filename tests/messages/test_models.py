"""Messages about models: nodes and edges that they lack, and folders that hold damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pahq_plugin as pahq
from pahq_plugin.discovery.checks import check_device, check_world
from pahq_plugin.discovery.methods import get_method
from pahq_plugin.errors import ConfigError, DistributedError, GraphError, MetricError, ModelError
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import check_order, find_edge
from pahq_plugin.models import hf_configs, hugging_face
from pahq_plugin.models.checks import check_patchable
from pahq_plugin.models.hf_folder import load_folder
from pahq_plugin.models.load import language_model
from pahq_plugin.models.record import digest
from pahq_plugin.system.plugins import load
from pahq_plugin.system.processes import World
from tests.helpers.families import family_model
from tests.helpers.refused import refused
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader, small_model, transformer

# Graphs -------------------------------------------------------------------------------------------


def test_names_and_orders_of_edges() -> None:
    model = small_model()
    edges = canonical_order(model)
    with refused(GraphError, "no edge 'A9.0->Resid End' in this model; edges are named like '"):
        find_edge(model, "A9.0->Resid End")
    with refused(GraphError, "order holds the edge '", "' twice"):
        check_order(model, [*edges, edges[0]])
    with refused(GraphError, "order holds 109 of 110 edges; '", "' is the first missing one"):
        check_order(model, edges[1:])
    with refused(GraphError, "order holds 'x', which is not an edge of this model"):
        check_order(model, ["x"])  # type: ignore[list-item]


def test_targets_of_the_backend() -> None:
    message = "3 is neither an edge of this model nor a (layer, head) pair"
    with pahq.mixed_precision(small_model()) as backend, refused(GraphError, message):
        backend.investigate(3)  # type: ignore[arg-type]


def test_a_model_in_four_bits() -> None:
    model = small_model()
    model.cfg.load_in_4bit = True
    with refused(ModelError, "load_in_4bit is on; load the model unquantised"):
        check_patchable(model)


# Devices and processes ----------------------------------------------------------------------------


def test_a_model_that_is_not_where_the_prompts_are() -> None:
    with refused(
        ConfigError,
        "the model is on cpu, the prompts are on meta; move the model there, or with the model on the "
        "CPU give max_memory",
    ):
        check_device(small_model(), torch.device("meta"), None)


def test_weights_that_are_not_where_the_configuration_says() -> None:
    """As after ``patchable.to("cuda")``, of which TransformerLens hears nothing."""
    model = small_model()
    model.cfg.device = "meta"
    with refused(
        ModelError,
        "the weights are on cpu, but cfg.device is meta, where activations would go; call "
        "model.wrapped_model.to('cpu'), which updates cfg.device, too",
    ):
        check_patchable(model)
    model.wrapped_model.to("cpu")
    assert check_patchable(model) is model


@pytest.mark.parametrize("device", [None, "zzz", -5.5])
def test_a_configuration_that_names_no_device(device: Any) -> None:
    model = small_model()
    model.cfg.device = device
    with refused(ModelError, f"cfg.device={device!r} is not a device; set one, such as 'cpu'"):
        check_patchable(model)


def test_masks_that_are_not_where_the_weights_are() -> None:
    """As after ``patchable_model(model.cuda(), ...)``, which makes them on the CPU."""
    model = small_model()
    name, mask = next(iter(model.patch_masks.items()))
    model.patch_masks[name] = torch.nn.Parameter(torch.empty_like(mask, device="meta"))
    with refused(
        ModelError,
        "the patch masks are on meta, the weights on cpu; call model.wrapped_model.to('cpu'), or pass "
        "that device to patchable_model",
    ):
        check_patchable(model)


def test_what_processes_cannot_share() -> None:
    model, two = small_model(), World(0, 2)
    check_world(get_method("eactp"), model, AblationType.RESAMPLE, two)
    with refused(
        DistributedError, "method 'eap' runs in one process; only searches and eactp can share prompts"
    ):
        check_world(get_method("eap"), model, AblationType.RESAMPLE, two)
    for ablation in AblationType:
        if ablation in (AblationType.RESAMPLE, AblationType.ZERO):
            check_world(get_method("acdc"), model, ablation, two)
            continue
        with refused(
            DistributedError,
            f"ablation {ablation.name.lower()!r} averages over prompts, which several processes share; "
            "run it in one process, or use resample or zero",
        ):
            check_world(get_method("acdc"), model, ablation, two)
    model.kv_caches = {4: None}  # type: ignore[assignment]
    with refused(
        DistributedError, "the model has KV caches of whole batches; several processes share batches"
    ):
        check_world(get_method("acdc"), model, AblationType.RESAMPLE, two)


def test_a_loss_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = torch.full((1,), torch.nan)
    monkeypatch.setattr(World, "_gather", lambda self, own: [own, lost])
    with refused(MetricError, "a loss is not finite in another process"):
        World(0, 2).total(lambda: torch.zeros(1), 1)


# Other models -------------------------------------------------------------------------------------


def test_weights_of_another_configuration() -> None:
    config = {"n_layers": 1, "d_model": 4, "n_ctx": 4, "d_head": 2, "d_vocab": 3, "act_fn": "relu"}
    with refused(ModelError, "the weights do not fit the configuration: blocks.0.attn.W_K"):
        language_model(config, {})


def test_models_of_hugging_face(tmp_path: Path) -> None:
    with refused(ModelError, f"no folder at {tmp_path / 'x'}; expected a Hugging Face model; "):
        load_folder(tmp_path / "x")
    quantised = SimpleNamespace(quantization_config={})
    message = "the model is quantised (quantization_config); load it unquantised"
    with refused(ModelError, message):
        hf_configs.hooked_arguments("GPT2LMHeadModel", quantised)
    codes = torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)
    with refused(ModelError, "the model is quantised: weights are not floats; load it unquantised"):
        hugging_face._dtype_and_device(codes)
    with refused(
        ModelError,
        "biased is True in the model's configuration; only models with biased=False can be converted",
    ):
        hf_configs._require(SimpleNamespace(biased=True), biased=False)
    with pytest.raises(ValueError, match=r"it has no blocks.0.attn.W_K") as caught:
        state = {n: p for n, p in transformer().state_dict().items() if n != "blocks.0.attn.W_K"}
        hugging_face._load(transformer(), state, process=False, centred=False)
    assert str(caught.value) == "it has no blocks.0.attn.W_K"


# Stored models ------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change ``model.json`` as someone who knows how its digest is made."""

    def edit(folder: Path) -> None:
        record = json.loads((folder / "model.json").read_text())
        change(record)
        record["digest"] = digest(record)
        (folder / "model.json").write_text(json.dumps(record))

    return edit


def configured(**values: Any) -> Callable[[Path], None]:
    return edited(lambda record: record["config"].update(values))


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file)

    return edit


BLOCK, W_O = "block-000.safetensors", "blocks.0.attn.W_O"

DAMAGES: list[tuple[Any, ...]] = [
    (lambda f: (f / "model.json").write_text("{"), "model.json is damaged: Expecting property name"),
    (edited(lambda r: r.update(layout=99)), "model.json has layout 99; this version reads layouts "),
    (configured(evil=1), "model.json is damaged: HookedTransformerConfig.__init__() got an unexpected"),
    (configured(n_layers=10**9), "is damaged: n_layers=1000000000 with "),
    (configured(n_layers=1), "model.json is damaged: n_layers=1 with other blocks"),
    (configured(n_ctx="many"), "model.json is damaged: n_ctx='many'"),
    (configured(d_mlp=999), "is damaged: blocks.0.mlp.W_in is (", "expected (d_model, d_mlp)"),
    (
        configured(normalization_type="RMS"),
        "model.json is damaged: blocks.0.ln1.w is missing or unexpected",
    ),
    (configured(num_experts=3, experts_per_token=1), "is damaged: num_experts=3 with 0 experts"),
    (configured(n_key_value_heads=99), "is damaged: n_key_value_heads=99 or rotary_dim=0"),
    (
        configured(n_ctx=10**9),
        "attention masks for n_ctx=1000000000 positions take ",
        " GB; pass open_model(folder, n_ctx=...) with the length of your longest prompts",
    ),
    (configured(act_fn="none"), "model.json is damaged: act_fn=none must be one of "),
    (
        configured(positional_embedding_type="rotary", rotary_dim=2, rotary_base="x"),
        "model.json is damaged: unsupported operand",
    ),
    (lambda f: (f / "tokenizer").mkdir(), "tokenizer is damaged: "),
    (lambda f: (f / BLOCK).write_bytes(b"x" * 9), "block-000.safetensors is damaged: "),
    (weights(BLOCK, lambda w: w.pop(W_O)), f"is damaged: {W_O} is missing or does not belong in it"),
    (
        weights(BLOCK, lambda w: w.update({W_O: w[W_O].double()})),
        f"is damaged: {W_O} is torch.float64 (",
        "), not torch.float32 (",
    ),
    (
        weights(BLOCK, lambda w: w.update({W_O: w[W_O] + 1})),
        f"is damaged: {W_O} was modified; save the model again",
    ),
    (
        lambda f: (f / "model.json").write_text(
            (f / "model.json").read_text().replace("1e-05", "1e-06")
        ),
        "model.json is damaged: its content was modified; save the model again",
    ),
    (
        edited(lambda r: r["fingerprints"].update({"blocks.0.strange": 1})),
        "is damaged: blocks.0.strange is missing or ",
    ),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    pahq.save_model(family_model("gpt2"), folder)
    return folder


@pytest.mark.parametrize("case", DAMAGES, ids=[case[1] for case in DAMAGES])
def test_stored_models(case: tuple[Any, ...], stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stored, folder)
    change, *words = case
    change(folder)
    with refused(ModelError, *words):
        pahq.open_model(folder)


def test_storing_and_opening(stored: Path, tmp_path: Path) -> None:
    message = f"{stored} already holds a model; pass force=True (--force) to replace it"
    with refused(ModelError, message):
        pahq.save_model(family_model("gpt2"), stored)
    half = family_model("gpt2", dtype=torch.float16)
    with refused(ModelError, "the model is in torch.float16; it must be in float32 or float64"):
        pahq.save_model(half, tmp_path)
    with refused(ModelError, f"{tmp_path} does not hold a model; write one with pahq_plugin.save_model"):
        pahq.open_model(tmp_path)
    with refused(ModelError, "n_ctx=0 must be between 1 and ", ", the model's context"):
        pahq.open_model(stored, n_ctx=0)


# What only other packages and models lead to --------------------------------------------------------


def test_norms_after_attention_of_another_kind() -> None:
    model = family_model("gemma-2")
    model.blocks[1].ln1_post = torch.nn.LayerNorm(model.cfg.d_model)
    message = "blocks.1.ln1_post is a LayerNorm; only an RMSNorm can be split over heads"
    with refused(ModelError, message):
        pahq.adapt(model)


def test_methods_that_look_for_a_circuit_of_the_official_size() -> None:
    message = (
        "method 'Circuit Probing' looks for a circuit of the size of true_edges, the official circuit;"
    )
    with refused(ConfigError, message):
        pahq.discover(small_model(), loader(), method="Circuit Probing", progress=False)


def test_engines_of_packages_that_are_not_whole() -> None:
    entry = EntryPoint("mine", "no_such_package.engines:Factory", "pahq.engines")
    message = "pahq.engines 'mine' (no_such_package.engines:Factory) cannot be loaded: No module named"
    with refused(ConfigError, message):
        load(entry)
