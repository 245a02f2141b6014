"""Gradients at destinations' inputs against autograd through the host's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.source_outputs import run_plain
from pahq_plugin.engines.incremental.tapes import Place, back, run, units_of
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.blocks import embed
from tests.helpers.small import KINDS, small_model, tokens

NAMES = {"q": "hook_q_input", "k": "hook_k_input", "v": "hook_v_input", "": "hook_mlp_in"}


def hosts_gradients(model: PatchableModel, prompts: Tensor, last: Tensor) -> dict[str, Tensor]:
    """Gradients of ``(last * final stream).sum()`` at hook points."""
    found: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        found[hook.name] = gradient.clone()

    inner: Any = model.wrapped_model
    inner.requires_grad_(True)
    names = [f"blocks.{layer}.{name}" for layer in range(2) for name in NAMES.values()]
    streams: list[Tensor] = []
    forward = [("blocks.1.hook_resid_post", lambda x, hook: streams.append(x))]
    with inner.hooks(
        fwd_hooks=forward, bwd_hooks=[(n, keep) for n in [*names, "blocks.0.hook_resid_pre"]]
    ):
        inner(prompts)
        (streams[0] * last).sum().backward()
    inner.zero_grad()
    inner.requires_grad_(False)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_hosts_modules(kind: str) -> None:
    model, prompts = small_model(kind, dtype=torch.float64), tokens()
    stream, padding = embed(model, prompts)
    units = units_of(model, stream, padding)
    tapes, final = run(units, stream)
    torch.testing.assert_close(final, run_plain(model, prompts, torch.float64).final)
    last = torch.randn(final.shape, dtype=final.dtype, generator=torch.manual_seed(0))
    found: dict[Place, Tensor] = {}
    first = back(units, tapes, last, found.__setitem__)
    with torch.enable_grad():
        expected = hosts_gradients(model, prompts, last)
    torch.testing.assert_close(first, expected["blocks.0.hook_resid_pre"])
    assert len(found) == 8
    for place, gradient in found.items():
        theirs = expected[f"blocks.{place.layer}.{NAMES[place.slot]}"]
        theirs = theirs[:, :, None] if theirs.ndim == 3 else theirs
        torch.testing.assert_close(gradient.permute(1, 2, 0, 3), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_bypasses_a_unit_skips_it_alone(kind: str) -> None:
    """Added in front of a unit, it goes back as from a run of the units before."""
    model, prompts = small_model(kind, dtype=torch.float64), tokens()
    stream, padding = embed(model, prompts)
    units = units_of(model, stream, padding)
    tapes, _ = run(units, stream)
    nothing, some = torch.zeros_like(stream), torch.ones_like(stream)
    ignored: dict[Place, Tensor] = {}
    added = [nothing, nothing, some, nothing]  # in front of the second block
    whole = back(units, tapes, nothing, ignored.__setitem__, added)
    first = back(units[:2], tapes[:2], some, ignored.__setitem__)
    torch.testing.assert_close(whole, first)
    assert float((first - some).abs().max()) > 0.1
