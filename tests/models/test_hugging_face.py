"""`pahq.from_hugging_face`: the logits are the model's own, in memory or wrapped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from auto_circuit.data import PromptDataLoader, PromptDataset
from torch import Tensor, nn

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError
from tests.helpers.hub import small_tokenizer
from tests.helpers.hugging_face import MODELS, VOCABULARY, hf_model
from tests.helpers.replay import replay

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
    "another class": (lambda: nn.Linear(2, 2), "Linear"),
    "not causal": (lambda: hf_model("llama").model, "LlamaModel"),
    "a patchable model": (lambda: pahq.from_hugging_face(hf_model("gpt2")), "PatchableModel"),
    "other arithmetic": (louder, "differ"),
    "wrong base": (lambda: changed("pythia", rotary_emb_base=10), "differ"),
    "soft caps": (lambda: changed("gemma-2", _attn_implementation="sdpa"), "sdpa"),
    "other sizes": (lambda: changed("llama", intermediate_size=47), "intermediate_size"),
    "no weights": (meta, "meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        pahq.from_hugging_face(make())


def test_other_arguments_are_refused() -> None:
    for count in (0, 33):
        with pytest.raises(ModelError, match=f"n_ctx={count}"):
            pahq.from_hugging_face(hf_model("gpt2"), n_ctx=count)
    with pytest.raises(ModelError, match="tokenizer"):
        pahq.from_hugging_face(hf_model("gpt2"), "gpt2")


def test_adapt_says_where_such_models_go() -> None:
    with pytest.raises(ModelError, match="from_hugging_face"):
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
    with pytest.raises(ModelError, match="lm_head"):
        pahq.from_hugging_face(bridge)
    bridge.__dict__["original_model"] = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear"):
        pahq.from_hugging_face(bridge)


# Folders ------------------------------------------------------------------------------------------
