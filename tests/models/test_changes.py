"""Models that somebody has changed: their changes count, or are refused, never passed over."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformer_lens.components import AbstractAttention

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, ExportError, ModelError
from pahq_plugin.models.blocks import unsupported
from pahq_plugin.models.changes import first_change, odd_attention
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.refused import refused
from tests.helpers.replay import replay
from tests.helpers.small import loader, small_model

THRESHOLD = 0.01


def hooked(model: PatchableModel) -> None:
    model.blocks[0].attn.register_forward_hook(lambda module, args, output: output * 3)


def hooked_before(model: PatchableModel) -> None:
    model.blocks[1].mlp.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def hooked_norm(model: PatchableModel) -> None:
    model.wrapped_model.ln_final.register_forward_hook(lambda module, args, output: output + 0.3)


def hooked_point(model: PatchableModel) -> None:
    model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: pattern.roll(1, dims=1))


def replaced_mlp(model: PatchableModel) -> None:
    own = model.blocks[1].mlp.forward
    model.blocks[1].mlp.forward = lambda x: own(x) * -2


def replaced_attention(model: PatchableModel) -> None:
    own = model.blocks[0].attn.forward
    model.blocks[0].attn.forward = lambda *args, **kwargs: own(*args, **kwargs) * -2


def replaced_scores(model: PatchableModel) -> None:
    own = model.blocks[1].attn.calculate_attention_scores
    model.blocks[1].attn.calculate_attention_scores = lambda q, k: own(q, k) * 3


def derived(model: PatchableModel) -> None:
    attention = model.blocks[1].attn

    class Mine(type(attention)):  # type: ignore[misc]
        def calculate_attention_scores(self, q: Any, k: Any) -> Any:
            return super().calculate_attention_scores(q, k) * 3

    attention.__class__ = Mine


def of_the_same_name(model: PatchableModel) -> None:
    class LayerNormPre(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.eps = eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.tanh()

    model.blocks[1].ln1 = LayerNormPre(1e-5)


def torchs_norm(model: PatchableModel) -> None:
    model.blocks[1].ln1 = nn.LayerNorm(model.cfg.d_model)
    nn.init.constant_(model.blocks[1].ln1.weight, 2.0)


def no_hook_point(model: PatchableModel) -> None:
    model.blocks[0].attn.hook_v = nn.Tanh()


def another_unembedding(model: PatchableModel) -> None:
    model.wrapped_model.unembed = nn.Linear(model.cfg.d_model, model.cfg.d_vocab_out)


def seeing_ahead(model: PatchableModel) -> None:
    model.blocks[0].attn.mask[:] = True


def forgiving(model: PatchableModel) -> None:
    model.blocks[0].attn.IGNORE = torch.tensor(-2.0)


CHANGES: dict[str, tuple[Callable[[PatchableModel], None], str]] = {
    "hook": (hooked, "hooks on blocks.0.attn"),
    "pre-hook": (hooked_before, "hooks on blocks.1.mlp"),
    "norm's hook": (hooked_norm, "hooks on ln_final"),
    "hook point": (hooked_point, "hooks on blocks.1.attn.hook_pattern"),
    "mlp": (replaced_mlp, "the replaced forward of blocks.1.mlp"),
    "attention": (replaced_attention, "the replaced forward of blocks.0.attn"),
    "scores": (replaced_scores, "the replaced calculate_attention_scores of blocks.1.attn"),
    "derived": (derived, "blocks.1.attn, a Mine"),
    "same name": (of_the_same_name, "blocks.1.ln1, a LayerNormPre"),
    "torch's norm": (torchs_norm, "blocks.1.ln1, a LayerNorm"),
    "no hook point": (no_hook_point, "blocks.0.attn.hook_v, a Tanh"),
    "unembedding": (another_unembedding, "unembed, a Linear"),
    "mask": (seeing_ahead, "blocks.0.attn.mask, which lets positions attend to later ones"),
    "ignore": (forgiving, "blocks.0.attn.IGNORE of -2"),
}
PASSED_OVER = ("attention", "scores", "derived")
"""What mixed precision would replace by arithmetic of its own where MLPs stay as they are."""

HEADS_ALONE = pahq.PrecisionConfig(low="bf16", mlp="fp32")
"""The default depends on the machine."""


@pytest.fixture(params=CHANGES)
def changed(request: pytest.FixtureRequest) -> tuple[PatchableModel, str, str]:
    change, words = CHANGES[request.param]
    model = small_model()
    change(model)
    return model, request.param, words


def test_changes_count_in_a_search(changed: tuple[PatchableModel, str, str]) -> None:
    model, _, words = changed
    assert unsupported(model, 5) == words
    result = pahq.discover(model, loader(), method="acdc", threshold=THRESHOLD, progress=False)
    assert result.settings["engine"] == "host"
    assert not replay(model, loader(), result.decisions, threshold=THRESHOLD, sample=None).disagreements


def test_screening_takes_them_or_says_no(changed: tuple[PatchableModel, str, str]) -> None:
    model, kind, words = changed
    if kind in PASSED_OVER:
        with refused(ModelError, words):
            pahq.discover(model, loader(), threshold=THRESHOLD, progress=False)
        return
    exact = pahq.discover(model, loader(), method="acdc", threshold=THRESHOLD, progress=False)
    result = pahq.discover(model, loader(), threshold=THRESHOLD, precision=HEADS_ALONE, progress=False)
    assert result.circuit == exact.circuit


def test_no_graph_passes_over_them(changed: tuple[PatchableModel, str, str]) -> None:
    parts = pytest.importorskip("pahq_exporters.graph.parts")
    model, _, words = changed
    (module,) = re.findall(r"blocks[.\w]+|ln_final|unembed", words)
    with refused(ExportError, module):
        parts.check_exportable(model)


def test_hooks_on_every_module() -> None:
    handle = register_module_forward_hook(lambda module, args, output: None)
    try:
        assert first_change(small_model()) == "hooks on all modules"
    finally:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_models_as_they_are_made_are_unchanged(name: str) -> None:
    model = pahq.adapt(family_model(name))
    assert first_change(model) is None and odd_attention(model, model.cfg.n_ctx) is None


def test_a_method_replaced_in_the_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    own = AbstractAttention.calculate_attention_scores
    monkeypatch.setattr(
        AbstractAttention, "calculate_attention_scores", lambda self, q, k: 3 * own(self, q, k)
    )
    assert first_change(model) == "the replaced calculate_attention_scores of blocks.0.attn"
    result = pahq.discover(model, loader(), method="acdc", threshold=THRESHOLD, progress=False)
    assert not replay(model, loader(), result.decisions, threshold=THRESHOLD, sample=None).disagreements


def test_other_slopes_are_seen() -> None:
    model = small_model(positional_embedding_type="alibi")
    model(next(iter(loader())).clean)  # which makes them
    assert odd_attention(model, 5) is None
    model.blocks[1].attn.alibi = model.blocks[1].attn.alibi * 2
    assert odd_attention(model, 5) == "the edited blocks.1.attn.alibi"


@pytest.mark.parametrize("method", ["acdc", "pahq", "eap"])
def test_a_lent_model_is_refused(method: str) -> None:
    """Its forwards are in few bits: no engine may take them for the model's own."""
    model = small_model()
    with pahq.mixed_precision(model):
        for inside in (pahq.mixed_precision(model), nullcontext()):
            with refused(ConfigError, "mixed_precision"), inside:
                pahq.discover(model, loader(), method=method, progress=False)
