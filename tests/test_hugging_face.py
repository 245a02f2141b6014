"""`pahq.from_hugging_face`: the logits are the model's own, in memory, wrapped, or from a folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from auto_circuit.data import PromptDataLoader, PromptDataset
from torch import Tensor, nn
from typer.testing import CliRunner

import pahq_plugin as pahq
from pahq_plugin.cli import app as cli
from pahq_plugin.errors import ModelError, ProblemError, PromptError
from pahq_plugin.models.hf_configs import ARCHITECTURES
from tests.helpers.hugging_face import MODELS, VOCABULARY, hf_model
from tests.helpers.replay import replay
from tests.zoo.hub import small_tokenizer

LENGTH = 24
"""Longer than every window and than what `from_hugging_face` compares itself."""

TOLERANCE = 1e-5
"""Of logits in their standard deviations; 1e-6 to 3e-6 were measured, FP32 rounding."""


def tokens(seed: int = 0, prompts: int = 2, length: int = LENGTH) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (prompts, length), generator=draw)


def loader() -> PromptDataLoader:
    clean, corrupt = tokens(1, 4, 6), tokens(2, 4, 6)
    ids = [torch.tensor([i]) for i in range(8)]
    dataset = PromptDataset(clean, corrupt, ids[:4], ids[4:])
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=2, shuffle=False)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """In standard deviations, without what is equal for all words of a position."""
    ours, theirs = (x.detach() - x.detach().mean(-1, keepdim=True) for x in (ours, theirs))
    return float((ours - theirs).abs().max() / theirs.std())


def test_every_architecture_is_tried() -> None:
    assert {type(hf_model(name)).__name__ for name in MODELS} == set(ARCHITECTURES)


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models_own(name: str, process: bool) -> None:
    """And the given model stays as it is, bit for bit."""
    given = hf_model(name).train()
    before = copy.deepcopy(given.state_dict())
    model = pahq.from_hugging_face(given, process=process)
    assert given.training and all(p.requires_grad for p in given.parameters())
    after = given.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    given.eval()
    assert difference(model(tokens()), given(input_ids=tokens()).logits) <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "pythia", "llama-3.1", "mistral", "qwen2", "gemma", "gemma-2"])
def test_a_discovery_runs(name: str) -> None:
    """Each decision, replayed alone by full host forwards, is the same."""
    model = pahq.from_hugging_face(hf_model(name))
    result = pahq.discover(model, loader(), method="acdc", threshold=0.03, progress=False)
    assert 0 < len(result.circuit) < len(result.decisions)
    report = replay(model, loader(), result.decisions, threshold=0.03)
    assert report.agrees, report


def test_processed_or_not_the_decisions_are_the_same() -> None:
    given = hf_model("gpt2")
    taken = [
        pahq.discover(
            pahq.from_hugging_face(given, process=process),
            loader(), method="acdc", threshold=0.03, progress=False,
        ).decisions
        for process in (False, True)
    ]  # fmt: skip
    assert [(d.edge.name, d.kept) for d in taken[0]] == [(d.edge.name, d.kept) for d in taken[1]]


def test_options_reach_the_model() -> None:
    model = pahq.from_hugging_face(
        hf_model("llama"), slice_output=None, seq_len=6, separate_qkv=False, n_ctx=6
    )
    assert (model.seq_len, model.separate_qkv, model.cfg.n_ctx) == (6, False, 6)
    assert model.out_slice == (slice(None),) and model.cfg.model_name == "LlamaForCausalLM"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """16 bits are widened, without a change of the weights; FP64 stays."""
    given = hf_model("llama", dtype=dtype)
    model = pahq.from_hugging_face(given)
    wide = hf_model("llama", dtype=torch.promote_types(dtype, torch.float32))
    wide.load_state_dict(given.state_dict())  # its rotary frequencies stay as they were made
    assert next(model.parameters()).dtype == wide.dtype
    assert difference(model(tokens()), wide(input_ids=tokens()).logits) <= TOLERANCE


# What is checked ----------------------------------------------------------------------------------


class Louder(transformers.GPT2LMHeadModel):
    """Computes something that its configuration does not say."""

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        out.logits = out.logits * torch.linspace(1, 1.01, out.logits.shape[-1])
        return out


def louder() -> nn.Module:
    model = Louder(hf_model("gpt2").config)
    model.load_state_dict(hf_model("gpt2").state_dict())
    return model


def changed(name: str, **values: Any) -> nn.Module:
    """A model whose configuration was changed after it was made."""
    model = hf_model(name)
    for key, value in values.items():
        setattr(model.config, key, value)
    return model


def meta() -> nn.Module:
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(hf_model("gpt2").config)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another class": (lambda: nn.Linear(2, 2), r"a Linear; .*GPT2LMHeadModel, GPTNeoXForCausalLM"),
    "not causal": (lambda: hf_model("llama").model, "model is a LlamaModel; .*LlamaForCausalLM"),
    "a patchable model": (lambda: pahq.from_hugging_face(hf_model("gpt2")), "model is a PatchableModel"),
    "other arithmetic": (louder, "logits of .* differ by .* that a HookedTransformer cannot"),
    "wrong base": (lambda: changed("pythia", rotary_emb_base=10), "the logits of .* differ"),
    "soft caps": (
        lambda: changed("gemma-2", _attn_implementation="sdpa"),
        'which attn_implementation="sdpa" ignores; load it with attn_implementation="eager"',
    ),
    "biases": (lambda: hf_model("llama", attention_bias=True), "attention_bias is True .*=False"),
    "unscaled": (lambda: hf_model("gpt2", scale_attn_weights=False), "scale_attn_weights is False"),
    "scaled rotary": (
        lambda: hf_model("llama", rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "rope_scaling has type 'linear'; only llama3",
    ),
    "scaled qwen": (
        lambda: hf_model("qwen2", rope_scaling={"rope_type": "linear", "factor": 2.0}),
        r"rope_scaling is set \('linear'\)",
    ),
    "other sizes": (
        lambda: changed("llama", intermediate_size=47),
        r"would lose model\.layers\.0\.mlp\.intermediate_size of 48",
    ),
    "missing": (lambda: changed("gpt2", n_head=None), "configuration of the GPT2LMHeadModel cannot"),
    "quantised": (lambda: changed("llama", quantization_config={}), "quantised"),
    "no weights": (meta, "weights are on meta; move it to one device first"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        pahq.from_hugging_face(make())


def test_other_arguments_are_refused() -> None:
    for count in (0, 33):
        with pytest.raises(ModelError, match=f"n_ctx={count} must be from 1 to 32"):
            pahq.from_hugging_face(hf_model("gpt2"), n_ctx=count)
    with pytest.raises(ModelError, match="tokenizer is a str; expected one of transformers"):
        pahq.from_hugging_face(hf_model("gpt2"), "gpt2")


def test_adapt_says_where_such_models_go() -> None:
    with pytest.raises(ModelError, match=r"pahq\.from_hugging_face\(model\)"):
        pahq.adapt(hf_model("gpt2"))  # type: ignore[arg-type]


# TransformerBridge --------------------------------------------------------------------------------


class Component(nn.Module):
    """As TransformerLens 3 wraps a module of a model: under this name, with parts of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.add_module("_original_component", inner)
        self.extra = nn.Linear(1, 1)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self._modules["_original_component"](*args, **options)  # type: ignore[misc]


class Bridge(nn.Module):
    """Stands in for a TransformerBridge, which cannot be installed beside TransformerLens 2.15.

    Args:
        model: a Hugging Face model.
        wrap: whether its modules are wrapped in place, as the real one does.
    """

    def __init__(self, model: Any, wrap: bool, tokenizer: Any = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        if wrap:
            for block in model.transformer.h:
                block.mlp.c_fc = Component(block.mlp.c_fc)
                block.ln_1, block.attn = Component(block.ln_1), Component(block.attn)
            model.lm_head = Component(model.lm_head)
        self.__dict__["original_model"] = model


@pytest.mark.parametrize("wrap", [False, True])
def test_a_bridge_gives_the_model_that_it_wraps(wrap: bool) -> None:
    tokenizer = small_tokenizer()
    expected = hf_model("gpt2")(input_ids=tokens()).logits
    model = pahq.from_hugging_face(Bridge(hf_model("gpt2"), wrap, tokenizer))
    assert difference(model(tokens()), expected) <= TOLERANCE
    own: Any = model.wrapped_model
    assert own.tokenizer is not tokenizer and own.tokenizer.encode("a") == tokenizer.encode("a")


def test_a_bridge_of_something_else_is_refused() -> None:
    bridge = Bridge(hf_model("gpt2"), wrap=True)
    del bridge.original_model.lm_head
    with pytest.raises(ModelError, match="would lose lm_head, a missing module"):
        pahq.from_hugging_face(bridge)
    bridge.__dict__["original_model"] = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="model is a Linear"):
        pahq.from_hugging_face(bridge)


# Folders ------------------------------------------------------------------------------------------


def saved(folder: Path, name: str = "gpt2", tokenizer: bool = False, **options: Any) -> Path:
    words = small_tokenizer()
    model = hf_model(name)
    if tokenizer:
        model.resize_token_embeddings(len(words), mean_resizing=False)
        words.save_pretrained(folder)
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("name", ["gpt2", "qwen2-window", "gemma-2"])
def test_a_folder(name: str, tmp_path: Path) -> None:
    """Also one of several files."""
    folder = saved(tmp_path / "models" / "mine", name, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    expected = hf_model(name)(input_ids=tokens()).logits
    for place in (folder, str(folder)):
        model = pahq.from_hugging_face(place)
        assert difference(model(tokens()), expected) <= TOLERANCE
    assert model.cfg.model_name == "mine (local)" and model.wrapped_model.tokenizer is None  # type: ignore[union-attr]


def test_a_problem_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as a path, or where no model of the hub has this name; else transformers would take the
    folder for the hub's model without a word."""
    folder = saved(tmp_path / "gpt2", tokenizer=True)
    monkeypatch.chdir(tmp_path)
    problem = pahq.load_problem("ioi", model="./gpt2", batch_size=2)
    assert problem.true_edges is None and problem.task.key == "pahq: ioi (gpt2 (local))"
    again = pahq.load_problem("ioi", model=folder, batch_size=2)
    assert again.model.cfg.model_name == "gpt2 (local)"
    for name in ("gpt2", "gpt2-small"):
        with pytest.raises(ProblemError, match=rf"'{name}' names both .* gpt2 and .* pass \./gpt2"):
            pahq.load_problem("ioi", model=name, batch_size=2)
    folder.rename(tmp_path / "mine")
    assert pahq.load_problem("ioi", model="mine", batch_size=2).model.cfg.model_name == "mine (local)"


def test_discover_from_the_command_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine", tokenizer=True)
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    asked = ["discover", "ioi", "--model", str(folder), "--batch-size", "2", "--json"]
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "mine (local)"
    (folder / "tokenizer.json").unlink()
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 1 and "no tokenizer.json, and prompts are text" in done.stderr


def test_prompts_of_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    folder, file = saved(tmp_path / "mine"), tmp_path / "prompts.json"
    pairs = zip(tokens(1, 6, 5).tolist(), tokens(2, 6, 5).tolist(), strict=True)
    prompts = [{"clean": a, "corrupt": b, "answers": [1], "wrong_answers": [2]} for a, b in pairs]
    file.write_text(json.dumps({"prompts": prompts}))
    problem = pahq.load_problem("ioi", model=folder, prompts=file, batch_size=2)
    assert next(iter(problem.train_loader)).clean.shape == (2, 5)
    prompts[3]["answers"] = [" word"]  # type: ignore[list-item]
    file.write_text(json.dumps({"prompts": prompts}))
    with pytest.raises(PromptError, match=r"no tokenizer\.json"):
        pahq.load_problem("ioi", model=folder, prompts=file, batch_size=2)


def edited(folder: Path, file: str, **values: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | values))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(hf_model("gpt2").state_dict(), folder / "pytorch_model.bin")


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lacking(folder: Path) -> None:
    outside(folder)
    edited(folder, "model.safetensors.index.json", weight_map={"lm_head.weight": "a.safetensors"})


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; write it with model"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json must hold readable JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json must hold a JSON object"),
    "no architecture": (lambda f: edited(f, "config.json", architectures=None), "architectures is None"),
    "unknown": (
        lambda f: edited(f, "config.json", architectures=["BertModel"]),
        "'BertModel'.; supported architectures: GPT2LMHeadModel",
    ),
    "few bits": (
        lambda f: edited(f, "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "; save it unquantised",
    ),
    "weights of another name": (
        lambda f: edited(f, "config.json", transformers_weights="../other.safetensors"),
        r"names a weight file .transformers_weights.; write it with model\.save_pretrained",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "a pickle": (pickled, r"has no model\.safetensors; other formats are not read"),
    "weights elsewhere": (outside, r"names '\.\./other\.safetensors'; expected .* in the folder"),
    "a file is missing": (lacking, r"lacks a\.safetensors, which model\.safetensors\.index\.json names"),
    "torn": (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "cannot be loaded"),
    "other sizes": (lambda f: edited(f, "config.json", n_embd=48), "cannot be loaded"),
    "a torn tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_folder_is_refused(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[case]
    folder = saved(tmp_path / "mine")
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        pahq.from_hugging_face(folder)


def test_no_folder() -> None:
    with pytest.raises(ModelError, match=r"no folder at nowhere; .*save_pretrained"):
        pahq.from_hugging_face("nowhere")


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    """Neither of the model nor of the tokenizer, whatever the files ask for."""
    folder, mark = saved(tmp_path / "mine", tokenizer=True), tmp_path / "was run"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    evil = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edited(folder, "config.json", auto_map=evil, model_type="evil")
    edited(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    model: Any = pahq.from_hugging_face(folder).wrapped_model
    assert model.tokenizer is not None and not mark.exists()
