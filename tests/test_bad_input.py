"""Bad input is refused in one line that names what is wrong, and leaves everything as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from typer.testing import CliRunner, Result

import pahq_plugin as pahq
from pahq_plugin.backend import mixed_precision
from pahq_plugin.cli import app
from pahq_plugin.errors import (
    ConfigError,
    FormatError,
    GraphError,
    MetricError,
    ModelError,
    PahqError,
    PromptError,
    ResultError,
)
from tests.helpers.lent import Snapshot, unusual_state
from tests.helpers.replay import canonical_order
from tests.helpers.small import VOCABULARY, loader, patchable, small_model, tokens, transformer

Problem = tuple[PatchableModel, PromptDataLoader]


def discover(model: Any, prompts: PromptDataLoader, **arguments: Any) -> pahq.Discovery:
    """A search with a threshold that keeps some edges of the small models."""
    return pahq.discover(model, prompts, progress=False, **arguments)


def refused(
    error: type[PahqError], words: tuple[str, ...], model: PatchableModel, call: Callable[[], object]
) -> None:
    """``call`` raises ``error`` in one line that holds ``words``, and ``model`` is untouched."""
    before = unusual_state(model)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message, message
    before.assert_unchanged()


# Models -------------------------------------------------------------------------------------------


def with_flags(**flags: bool) -> PatchableModel:
    model = small_model()
    for name, value in flags.items():
        setattr(model.cfg, name, value)
    return model


def unseparated(**flags: bool) -> PatchableModel:
    model = patchable(transformer(separate_qkv=False), separate_qkv=False)
    for name, value in flags.items():
        setattr(model.cfg, name, value)
    return model


def not_factorized() -> PatchableModel:
    unsplit = transformer(separate_qkv=False)
    return patchable_model(unsplit, factorized=False, slice_output="last_seq", separate_qkv=False)


def grouped() -> PatchableModel:
    return patchable(transformer(n_key_value_heads=2))


def with_bad_weight(*names: str, value: float = math.nan) -> PatchableModel:
    model = small_model()
    parameters = dict(model.wrapped_model.named_parameters())
    for name in names:
        parameters[name].data.view(-1)[-1] = value
    return model


BROKEN_MODELS: dict[str, tuple[Callable[[], PatchableModel], tuple[str, ...]]] = {
    "use_attn_result": (
        lambda: with_flags(use_attn_result=False),
        ("use_attn_result is off", "set_use_attn_result(True)"),
    ),
    "split inputs": (
        lambda: with_flags(use_split_qkv_input=False),
        ("use_split_qkv_input is off", "set_use_split_qkv_input(True)"),
    ),
    "mlp inputs": (
        lambda: with_flags(use_hook_mlp_in=False),
        ("use_hook_mlp_in is off", "set_use_hook_mlp_in(True)"),
    ),
    "attention inputs": (
        lambda: unseparated(use_attn_in=False),
        ("use_attn_in is off", "set_use_attn_in(True)"),
    ),
    "split on, not separate": (
        lambda: unseparated(use_split_qkv_input=True),
        ("use_split_qkv_input is on", "separate_qkv=False", "set_use_split_qkv_input(False)"),
    ),
    "post-norm": (
        lambda: with_flags(use_normalization_before_and_after=True),
        ("use_normalization_before_and_after", "post-norm"),
    ),
    "not factorized": (not_factorized, ("not factorized", "factorized=True")),
    "grouped": (grouped, ("n_key_value_heads", "set_ungroup_grouped_query_attention(True)")),
    "NaN": (lambda: with_bad_weight("blocks.1.attn.W_K"), ("blocks.1.attn.W_K", "NaN")),
    "inf": (
        lambda: with_bad_weight("blocks.0.mlp.b_out", value=math.inf),
        ("blocks.0.mlp.b_out", "infinity"),
    ),
    "first NaN": (
        lambda: with_bad_weight("blocks.1.mlp.W_in", "blocks.0.attn.W_O", "unembed.W_U"),
        ("blocks.0.attn.W_O",),
    ),
}

METHODS = ["pahq", "pahq-paper", "rtn-q", "acdc", "eap", "eap-ig", "ACDC", "Random"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", BROKEN_MODELS)
def test_a_model_that_cannot_be_patched_is_refused(broken: str, method: str) -> None:
    make, words = BROKEN_MODELS[broken]
    model = make()
    refused(ModelError, words, model, lambda: discover(model, loader(), method=method))


@pytest.mark.parametrize("broken", BROKEN_MODELS)
def test_a_model_that_cannot_be_patched_is_not_lent(broken: str) -> None:
    make, words = BROKEN_MODELS[broken]
    model = make()
    refused(ModelError, words, model, lambda: pahq.mixed_precision(model).__enter__())


def test_the_same_models_work_once_they_are_right() -> None:
    """Otherwise the refusals above would prove nothing."""
    for model in (small_model(), unseparated()):
        assert len(discover(model, loader(), method="acdc").decisions) == len(model.edges)
    ungrouped = transformer(n_key_value_heads=2)
    ungrouped.cfg.ungroup_grouped_query_attention = True
    assert discover(patchable(ungrouped), loader(), method="acdc").decisions


def of_hugging_face() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=1))


@pytest.mark.parametrize(
    ("model", "instead"),
    [
        (transformer(), r"pass pahq_plugin\.adapt\(model\)"),
        (of_hugging_face(), r"pass pahq_plugin\.from_hugging_face\(model\)"),
        (SimpleNamespace(model=small_model()), r"pass its \.model"),
        (loader(), "pass the model first"),
        ("gpt2", r"load one, for example load_problem\('ioi', model='gpt2'\)\.model"),
        (torch.nn.Linear(2, 2), "wrap it with .*patchable_model"),
        (None, "wrap it with .*patchable_model"),
    ],
)
def test_what_is_no_host_model_is_refused(model: Any, instead: str) -> None:
    with pytest.raises(ModelError, match=f"not a PatchableModel; {instead}"):
        discover(model, loader())


def test_what_is_no_loader_is_refused() -> None:
    model, prompts = small_model(), loader()
    problem = SimpleNamespace(train_loader=prompts)
    with pytest.raises(PromptError, match=r"not a PromptDataLoader; pass its \.train_loader"):
        discover(model, problem)  # type: ignore[arg-type]
    for wrong in (next(iter(prompts)), "prompts.json", torch.zeros(2, 3)):
        with pytest.raises(PromptError, match="not a PromptDataLoader; pass one that gives"):
            discover(model, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp8", torch.bfloat16, {"low": "int8"}])
def test_what_is_no_precision_is_refused(precision: Any) -> None:
    model = small_model()
    with pytest.raises(ConfigError, match="must be a PrecisionConfig, for example"):
        discover(model, loader(), precision=precision)
    with (
        pytest.raises(ConfigError, match="must be a PrecisionConfig"),
        mixed_precision(model, precision),
    ):
        pass


def micro() -> Problem:
    model = patchable_model(MicroModel(), factorized=True, slice_output="last_seq")
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randn(2, 3, 2, generator=generator) for _ in range(2))
    nothing = [torch.tensor([0])] * 2
    dataset = PromptDataset(list(clean), list(corrupt), nothing, nothing)
    return model, PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=2)


@pytest.mark.parametrize("method", ["pahq", "pahq-paper", "rtn-q", "eap-ig"])
def test_a_method_of_heads_refuses_what_is_no_transformer(method: str) -> None:
    model, prompts = micro()
    words = (method, "no transformer", 'method="acdc"')
    refused(ModelError, words, model, lambda: discover(model, prompts, method=method))


def test_mixed_precision_refuses_what_is_no_transformer() -> None:
    model, _ = micro()
    refused(ModelError, ("no transformer",), model, lambda: pahq.mixed_precision(model).__enter__())


def test_acdc_takes_a_model_that_is_no_transformer() -> None:
    from tests.helpers.replay import threshold_for_share

    model, prompts = micro()
    threshold, expected = threshold_for_share(model, prompts, metric="mse")
    result = discover(model, prompts, method="acdc", metric="mse", threshold=threshold)
    by_edge = {decision.edge: decision for decision in result.decisions}
    assert by_edge.keys() == model.edges and 0 < len(result.circuit) < len(model.edges)
    if [d.edge for d in result.decisions] == [d.edge for d in expected]:
        assert [d.kept for d in result.decisions] == [d.kept for d in expected]


# Prompts ------------------------------------------------------------------------------------------


def prompts_of(
    clean: list[Tensor] | Tensor, corrupt: list[Tensor] | Tensor, batch_size: int = 2
) -> PromptDataLoader:
    n = len(clean)
    answers, wrong = [torch.tensor([1])] * n, [torch.tensor([2])] * n
    dataset = PromptDataset(clean, corrupt, answers, wrong)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=batch_size)


@pytest.mark.parametrize("method", ["pahq", "acdc", "eap", "Random"])
@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :4]),
            ("one length", "(6)", "(4)"),
            id="clean and corrupt",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :1]),
            ("clean and corrupt", "6 and 1 tokens"),
            id="one corrupt token",
        ),
        pytest.param(
            lambda: prompts_of([tokens(0)[0], tokens(0)[1, :4]], list(tokens(1)[:2])),
            ("one length",),
            id="within a batch",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0)[:1], tokens(1)[:1]),
            ("empty", "1 prompts", "batch size of 2"),
            id="fewer than a batch",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0) + VOCABULARY, tokens(1)),
            (f"vocabulary of {VOCABULARY}",),
            id="too high a token",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0) - VOCABULARY, tokens(1)),
            (f"vocabulary of {VOCABULARY}",),
            id="a negative token",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0, length=17), tokens(1, length=17)),
            ("17 tokens", "context of 16"),
            id="too long",
        ),
    ],
)  # fmt: skip
def test_prompts_that_do_not_fit_are_refused(
    prompts: Callable[[], PromptDataLoader], words: tuple[str, ...], method: str
) -> None:
    model = small_model()
    refused(PromptError, words, model, lambda: discover(model, prompts(), method=method))


def test_an_empty_data_set_is_refused() -> None:
    model, prompts = small_model(), prompts_of([], [])
    refused(PromptError, ("empty", "0 prompts"), model, lambda: discover(model, prompts))


@pytest.mark.parametrize("method", ["acdc", "eap", "Random"])
def test_more_batches_than_the_loader_has_are_refused(method: str) -> None:
    model = small_model()
    words = ("batches=2", "holds 1")
    refused(PromptError, words, model, lambda: discover(model, loader(), method=method, batches=2))


def test_prompts_of_another_length_than_the_graph_are_refused() -> None:
    model = patchable(transformer(), seq_len=5)
    refused(PromptError, ("seq_len=5", "6"), model, lambda: discover(model, loader()))


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 0.0, -0.1, math.nan, math.inf, -math.inf, "0.1", True, None])
@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_a_threshold_out_of_range_is_refused(threshold: Any, method: str) -> None:
    model = small_model()
    refused(
        ConfigError,
        ("threshold", repr(threshold), "above 0"),
        model,
        lambda: discover(model, loader(), method=method, threshold=threshold),
    )


UNKNOWN: list[tuple[dict[str, Any], type[PahqError], tuple[str, ...]]] = [
    ({"method": "pahk"}, ConfigError, ("'pahk'", "pahq, pahq-paper", "acdc", "eap-ig", "Subnetwork")),
    ({"metric": "kl"}, MetricError, ("'kl'", "kl_div, mse, logit_diff")),
    ({"engine": "fast"}, ConfigError, ("'fast'", "auto, incremental, host")),
    ({"ablation": "none"}, ConfigError, ("'none'", "resample", "zero", "batch_all_tok_mean")),
]


@pytest.mark.parametrize(("arguments", "error", "words"), UNKNOWN)
def test_an_unknown_name_is_refused_with_the_known_ones(
    arguments: dict[str, Any], error: type[PahqError], words: tuple[str, ...]
) -> None:
    model = small_model()
    refused(error, words, model, lambda: discover(model, loader(), **arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"low": "fp9"}, ("'fp9'", "fp8_e4m3", "int8", "bf16")),
        ({"mlp": "fp9"}, ("'fp9'", "fp8_e4m3", "int8", "bf16")),
        ({"low": "int4"}, ("low='int4'", "weights only", "int8")),
        ({"scale": "column"}, ("'column'", "row", "head", "tensor", "none")),
        ({"policy": "all"}, ("'all'", "investigated_head, investigated_path, uniform, full")),
        ({"guard": -0.1}, ("guard=-0.1", "at least 0")),
        ({"guard": math.nan}, ("guard=nan", "auto")),
        ({"guard": "wide"}, ("guard='wide'", "auto")),
        ({"kernel": "fast"}, ("unknown kernel 'fast'", "eager")),
        ({"parts": ("qk",)}, ("'qk'", "qkv, output")),
    ],
)
def test_a_precision_that_does_not_exist_is_refused(
    arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises((ConfigError, FormatError)) as caught:
        pahq.PrecisionConfig(**arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize("ablation", [None, 3])
def test_an_ablation_that_is_no_name_is_refused(ablation: Any) -> None:
    model = small_model()
    words = (repr(ablation), "resample")
    refused(ConfigError, words, model, lambda: discover(model, loader(), ablation=ablation))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batches": 0}, ("batches=0",)),
        ({"batches": -1}, ("batches=-1",)),
        ({"batches": 1.0}, ("batches=1.0",)),
        ({"batches": True}, ("batches=True",)),
        ({"seed": -1}, ("seed=-1",)),
        ({"seed": 0.5}, ("seed=0.5",)),
    ],
)
def test_a_count_out_of_range_is_refused(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    model = small_model()
    refused(ConfigError, words, model, lambda: discover(model, loader(), **arguments))


@pytest.mark.parametrize("n_edges", [-1, 10**6, 2.5, math.nan, "3", True])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "Random"])
def test_a_circuit_size_out_of_range_is_refused(n_edges: Any, method: str) -> None:
    model = small_model()
    words = (f"n_edges={n_edges!r}", f"{len(model.edges)}")
    refused(ConfigError, words, model, lambda: discover(model, loader(), method=method, n_edges=n_edges))


PRECISION = pahq.PrecisionConfig(low="int8")
UNUSABLE: list[tuple[str, dict[str, Any]]] = [
    *(("acdc", {name: value}) for name, value in
      (("precision", PRECISION), ("n_edges", 5), ("true_edges", set()))),
    *(("pahq", {name: value}) for name, value in (("n_edges", 5), ("true_edges", set()))),
    ("pahq-paper", {"precision": PRECISION}),
    ("rtn-q", {"precision": PRECISION}),
    *((method, arguments) for method in ("eap", "eap-ig") for arguments in (
        {"threshold": 0.1}, {"metric": "mse"}, {"engine": "host"}, {"precision": PRECISION},
        {"order": ()}, {"true_edges": set()})),
    *(("Random", arguments) for arguments in (
        {"threshold": 0.1}, {"metric": "mse"}, {"ablation": "zero"}, {"engine": "host"},
        {"precision": PRECISION}, {"order": ()})),
]  # fmt: skip


@pytest.mark.parametrize(("method", "arguments"), UNUSABLE)
def test_an_argument_that_a_method_cannot_use_is_refused(method: str, arguments: dict[str, Any]) -> None:
    model = small_model()
    (name,) = arguments
    refused(
        ConfigError,
        (repr(method), f"cannot use {name}", "it uses"),
        model,
        lambda: discover(model, loader(), method=method, **arguments),
    )


def test_a_method_that_needs_the_official_circuit_says_so() -> None:
    model = small_model()
    refused(
        PahqError,
        ("true_edges",),
        model,
        lambda: discover(model, loader(), method="Official Circuit"),
    )


def test_an_official_circuit_of_another_model_is_refused() -> None:
    model = small_model()
    stranger = strange_edge(model)
    refused(
        PahqError,
        (stranger.name,),
        model,
        lambda: discover(model, loader(), method="Official Circuit", true_edges={stranger}),
    )


# Edges and heads ----------------------------------------------------------------------------------


def strange_edge(model: PatchableModel) -> Edge:
    edge = canonical_order(model)[0]
    return dataclasses.replace(edge, seq_idx=3)


Orders = Callable[[list[Edge]], list[Any]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda edges: edges[:-1], ("of 110 edges", "missing"), id="missing"),
        pytest.param(lambda edges: [*edges, edges[3]], ("twice",), id="doubled"),
        pytest.param(lambda edges: [edges[1], *edges[1:]], ("twice",), id="doubled and missing"),
        pytest.param(
            lambda edges: [*edges[:-1], dataclasses.replace(edges[-1], seq_idx=1)],
            ("@1", "no edge of this model"),
            id="foreign",
        ),
        pytest.param(lambda edges: [e.name for e in edges], ("no edge of this model",), id="names"),
        pytest.param(lambda edges: [], ("0 of 110",), id="none"),
    ],
)
def test_an_order_that_is_no_permutation_is_refused(change: Orders, words: tuple[str, ...]) -> None:
    model = small_model()
    order = canonical_order(model)
    assert len(order) == 110
    changed = change(order)
    refused(GraphError, words, model, lambda: discover(model, loader(), order=changed))


@pytest.mark.parametrize("target", [(0, 4), (2, 0), (-1, 0), (0, -1), (0, 1, 2), "A0.1", 3])
def test_a_head_that_does_not_exist_is_refused(target: Any) -> None:
    model = small_model()
    with pahq.mixed_precision(model, PRECISION) as backend, pytest.raises(GraphError) as caught:
        backend.investigate(target)
    assert len(str(caught.value).splitlines()) == 1
    assert str(target[1] if isinstance(target, tuple) else target) in str(caught.value)


def test_an_edge_that_does_not_exist_is_refused() -> None:
    model = small_model()
    edge = strange_edge(model)
    with (
        pahq.mixed_precision(model, PRECISION) as backend,
        pytest.raises(GraphError, match=f"{edge.name} @3.* no edge of this model"),
    ):
        backend.investigate(edge)


# Metrics ------------------------------------------------------------------------------------------


def single_output() -> PatchableModel:
    return small_model(d_vocab_out=1)


@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_kl_div_of_a_single_output_is_refused(method: str) -> None:
    model = single_output()
    words = ("kl_div", "one output", 'metric="mse"')
    refused(MetricError, words, model, lambda: discover(model, loader(), method=method, metric="kl_div"))
    assert discover(model, loader(), method="acdc").settings["metric"] == "mse"


def returns(value: Callable[[Tensor], object]) -> Callable[..., Any]:
    def loss(logits: Tensor, clean_logits: Tensor, batch: object) -> object:
        return value(logits)

    return loss


BAD_METRICS: dict[str, tuple[Callable[[Tensor], object], tuple[str, ...]]] = {
    "NaN": (lambda x: x[:, 0] * math.nan, ("nan", "finite")),
    "inf": (lambda x: x[:, 0].abs() * math.inf, ("inf", "finite")),
    "scalar": (lambda x: x.mean(), ("one loss per prompt, [4]", "[]")),
    "matrix": (lambda x: x, ("one loss per prompt, [4]", f"[4, {VOCABULARY}]")),
    "too few": (lambda x: x[:2, 0], ("one loss per prompt, [4]", "[2]")),
    "number": (lambda x: 1.0, ("one loss per prompt, [4]", "float")),
    "nothing": (lambda x: None, ("one loss per prompt, [4]", "NoneType")),
}


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("method", ["pahq", "acdc"])
@pytest.mark.parametrize("bad", BAD_METRICS)
def test_what_no_metric_returns_is_refused(bad: str, method: str, engine: str) -> None:
    value, words = BAD_METRICS[bad]
    model = small_model()
    refused(
        MetricError,
        ("loss", *words),
        model,
        lambda: discover(model, loader(), method=method, engine=engine, metric=returns(value)),
    )


@pytest.mark.parametrize("engine", ["host", "incremental"])
def test_a_metric_that_fails_late_names_the_edge(engine: str) -> None:
    """NaN as soon as any edge is patched: the clean run is fine."""
    model = small_model()

    def late(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        change = (logits - clean_logits).abs().amax(dim=-1)
        return torch.where(change > 1e-4, torch.nan, change)

    refused(
        MetricError,
        ("late", "nan", "Resid End"),
        model,
        lambda: discover(model, loader(), method="acdc", engine=engine, metric=late),
    )


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_answers_that_are_no_token_ids_are_refused(method: str) -> None:
    """As those of tracr-xproportion, which are values."""
    model = single_output()
    clean, corrupt = tokens(0), tokens(1)
    answers = [torch.tensor([0.5]) for _ in clean]
    dataset = PromptDataset(clean, corrupt, answers, answers)
    prompts = PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=4)
    refused(PahqError, ("answers",), model, lambda: discover(model, prompts, method=method))


# Results ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> pahq.Discovery:
    result = discover(small_model(), loader(), method="acdc", metric="mse", threshold=0.01)
    assert 0 < len(result.circuit) < len(result.decisions)
    return result


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def alter(text: str) -> str:
        record = json.loads(text)
        change(record)
        return json.dumps(record)

    return alter


def decision(field: str, value: Any) -> Callable[[str], str]:
    return altered(lambda record: record["decisions"][5].update({field: value}))


def flip_a_decision(record: dict[str, Any]) -> None:
    record["decisions"][5]["kept"] = not record["decisions"][5]["kept"]


DAMAGED: dict[str, Callable[[str], str]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "binary": lambda text: "\x00\x01",
    "a list": lambda text: "[]",
    "foreign": lambda text: '{"name": "something else"}',
    "another schema": altered(lambda r: r.update(schema="pahq-discovery/0")),
    "no settings": altered(lambda r: r.pop("settings")),
    "empty settings": altered(lambda r: r.update(settings={})),
    "no model": altered(lambda r: r.pop("model")),
    "no decisions": altered(lambda r: r.pop("decisions")),
    "kept is a word": decision("kept", "yes"),
    "effect is NaN": decision("effect", math.nan),
    "effect is a word": decision("effect", "0.5"),
    "edge is a number": decision("edge", 5),
    "edge is no edge": decision("edge", "A9.9->nowhere"),
    "edge without an arrow": decision("edge", "nowhere"),
    "unknown position": decision("seq_idx", 4),
    "one more field": decision("note", ""),
    "one field less": altered(lambda r: r["decisions"][5].pop("exact")),
    "one decision less": altered(lambda r: r["decisions"].pop(5)),
    "one decision twice": altered(lambda r: r["decisions"].append(r["decisions"][5])),
    "one instead of another": altered(lambda r: r["decisions"].__setitem__(4, r["decisions"][5])),
    "kept against its effect": altered(flip_a_decision),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_result_is_refused(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    file = found.save(tmp_path / "result") / "result.json"
    file.write_text(DAMAGED[damage](file.read_text()))
    before = Snapshot(found.model)
    with pytest.raises(PahqError) as caught:
        pahq.Discovery.load(tmp_path / "result", found.model)
    assert len(str(caught.value).splitlines()) == 1
    before.assert_unchanged()


def test_the_same_file_undamaged_is_read(found: pahq.Discovery, tmp_path: Path) -> None:
    found.save(tmp_path)
    assert pahq.Discovery.load(tmp_path, found.model) == found


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: small_model(seed=1), id="weights"),
        pytest.param(lambda: small_model(n_layers=3), id="depth"),
        pytest.param(lambda: patchable(transformer(), seq_len=6), id="positions"),
        pytest.param(lambda: small_model(dtype=torch.float64), id="dtype"),
    ],
)
def test_a_result_of_another_model_is_refused(
    found: pahq.Discovery, other: Callable[[], PatchableModel], tmp_path: Path
) -> None:
    found.save(tmp_path)
    model = other()
    words = ("another model", str(len(found.model.edges)))
    refused(ResultError, words, model, lambda: pahq.Discovery.load(tmp_path, model))


def test_one_changed_weight_makes_another_model(found: pahq.Discovery, tmp_path: Path) -> None:
    found.save(tmp_path)
    model = small_model()
    assert pahq.Discovery.load(tmp_path, model).circuit == found.circuit
    model.wrapped_model.blocks[1].attn.W_K.data[0, 0, 0] += 2**-10
    with pytest.raises(ResultError, match="another model"):
        pahq.Discovery.load(tmp_path, model)


# Command line -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line lowers the root logger; a process of its own would end with it."""
    import logging

    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code != 0
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "unexpected" not in lines[0], lines[0]
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


def assert_refused(tmp_path: Path, arguments: list[str], *words: str) -> None:
    """``pahq discover`` prints one line and writes nothing, in tables as with ``--json``."""
    out = tmp_path / "out"
    for flags in ([], ["--json"]):
        assert_one_line(command("discover", *arguments, "--out", str(out), *flags), *words)
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chess"], ("'chess'", "ioi, greater-than, induction")),
        (["ioi", "--threshold", "0"], ("threshold=0.0", "above 0")),
        (["ioi", "--threshold", "-0.5"], ("threshold=-0.5",)),
        (["ioi", "--threshold", "nan"], ("threshold=nan",)),
        (["ioi", "--threshold", "inf"], ("threshold=inf",)),
        (["ioi", "--method", "pahk"], ("'pahk'", "pahq-paper")),
        (["ioi", "--metric", "kl"], ("'kl'", "kl_div, mse, logit_diff")),
        (["ioi", "--engine", "fast"], ("'fast'", "auto, incremental, host")),
        (["ioi", "--ablation", "none"], ("'none'", "resample")),
        (["ioi", "--low", "fp9"], ("'fp9'", "fp8_e4m3")),
        (["ioi", "--mlp", "int4"], ("mlp='int4'", "weights only")),
        (["ioi", "--scale", "column"], ("'column'", "row")),
        (["ioi", "--policy", "all"], ("'all'", "investigated_head")),
        (["ioi", "--guard", "wide"], ("'wide'", "auto")),
        (["ioi", "--guard", "-1"], ("guard=-1.0",)),
        (["ioi", "--kernel", "fast"], ("unknown kernel 'fast'", "auto, eager, native")),
        (["ioi", "--low", "fp8_e4m3", "--kernel", "native"], ("fp8_e4m3 has no kernel", "auto")),
        (["ioi", "--batches", "-1"], ("batches=-1",)),
        (["ioi", "--batches", "99"], ("batches=99", "holds 4")),
        (["ioi", "--seed", "-1"], ("seed",)),
        (["ioi", "--batch-size", "0"], ("batch_size", "at least 1")),
        (["ioi", "--method", "eap", "--n-edges", "-3"], ("n_edges=-3", "1519")),
        (["ioi", "--method", "eap", "--n-edges", "9999"], ("n_edges=9999", "1519")),
        (["ioi", "--method", "eap", "--threshold", "0.1"], ("cannot use threshold",)),
        (["ioi", "--method", "eap", "--metric", "mse"], ("cannot use metric",)),
        (["ioi", "--method", "acdc", "--n-edges", "3"], ("cannot use n_edges",)),
        (["ioi", "--method", "acdc", "--low", "int8"], ("cannot use precision",)),
        (["ioi", "--method", "Official Circuit"], ("true_edges",)),
        (["tracr-xproportion", "--metric", "kl_div"], ("kl_div", "mse")),
        (["tracr-xproportion", "--model", "gpt2"], ("model",)),
        (["tracr-xproportion", "--method", "eap"], ("answers",)),
    ],
)  # fmt: skip
def test_the_command_refuses(arguments: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(tmp_path, arguments, *words)


@pytest.mark.parametrize("broken", BROKEN_MODELS)
def test_the_command_refuses_a_model(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = BROKEN_MODELS[broken]

    def load(name: str, **arguments: object) -> Any:
        return pahq.Problem(name, make(), loader(), loader(), "kl_div", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("pahq_plugin.zoo.load_problem", load)
    assert_refused(tmp_path, ["ioi"], *words)


def prompt_file(path: Path, prompts: list[dict[str, Any]]) -> list[str]:
    path.write_text(json.dumps({"prompts": prompts}))
    return ["ioi", "--prompts", str(path)]


def pair(clean: list[int], corrupt: list[int]) -> dict[str, Any]:
    return {"clean": clean, "corrupt": corrupt, "answers": [5], "wrong_answers": [6]}


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([pair([1, 2, 3], [1, 2, 3, 4])] * 24, ("prompt 0", "3", "4")),
        ([pair([1, 2, 3], [1, 2, 4])] * 23 + [pair([1, 2], [1, 3])], ("23", "2")),
        ([pair([1, 2, 3], [1, 2, 4])] * 5, ("5 prompts", "batch")),
        ([], ("no prompts",)),
        ([pair([1, 2, 99999], [1, 2, 4])] * 24, ("99999",)),
        ([{"clean": [1, 2]}] * 24, ("prompt 0", "corrupt")),
    ],
)
def test_the_command_refuses_prompts(
    prompts: list[dict[str, Any]], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(tmp_path, prompt_file(tmp_path / "prompts.json", prompts), *words)


def test_the_command_refuses_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path, ["ioi", "--prompts", str(tmp_path / "none.json")], "none.json")


def test_the_command_refuses_a_file_as_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line(command("discover", "ioi", "--out", str(file)), "is a file", "folder")
    assert file.read_text() == "mine"


SHOWN_WITHOUT_A_MODEL = {"edge is no edge", "unknown position"}
"""Damage that only the model can tell."""


@pytest.mark.parametrize("damage", sorted(DAMAGED.keys() - SHOWN_WITHOUT_A_MODEL))
def test_show_refuses_a_damaged_result(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    file = found.save(tmp_path) / "result.json"
    file.write_text(DAMAGED[damage](file.read_text()))
    assert_one_line(command("show", str(tmp_path)), "result.json")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"stats": 5}', '{"stats": {"seconds": 1}}'])
def test_show_refuses_a_damaged_run_record(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    (found.save(tmp_path) / "run.json").write_text(damage)
    assert_one_line(command("show", str(tmp_path)), "run.json")
    with pytest.raises(ResultError, match=r"run\.json"):
        pahq.Discovery.load(tmp_path, found.model)


def test_show_refuses_a_folder_without_a_result(tmp_path: Path) -> None:
    assert_one_line(command("show", str(tmp_path)), "no result", "result.json")
    assert_one_line(command("show", str(tmp_path / "nowhere")), "no result", "nowhere")


def test_every_ablation_name_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        discover(small_model(), loader(), ablation="x")
    assert all(kind.name.lower() in str(caught.value) for kind in AblationType)
