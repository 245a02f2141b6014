"""Rows from the middle of the model to its output, against the host's own forward from there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.utils.graph_utils import patchable_model

from pahq_plugin.engines.incremental.full_model import GroupView
from pahq_plugin.engines.incremental.onward import Onward
from pahq_plugin.engines.incremental.prompt_groups import PromptGroup
from pahq_plugin.models.blocks import unembed
from tests.helpers.alone import engine
from tests.helpers.small import KINDS, OTHER_KINDS, loader, patchable, transformer

CASES: list[dict[str, Any]] = [*KINDS.values(), *OTHER_KINDS]


@pytest.mark.parametrize("work", [10**6, 1], ids=["whole", "row by row"])
@pytest.mark.parametrize("changes", CASES, ids=lambda changes: next(iter(changes)))
def test_changed_streams_give_the_logits_of_a_forward_from_there(
    changes: dict[str, Any], work: int
) -> None:
    """From block 1 on, for three rows that change two of four prompts from position 2 on."""
    model, first = patchable(transformer(n_layers=3, **_layered(changes))), 2
    if model.cfg.attention_dir == "bidirectional":
        first = 0
    full = engine(model, loader())._full[0]
    at = next(i for i, s in enumerate(full.graph.stages) if s.kind == "head" and s.layer == 1)
    group = PromptGroup(np.array([0, 2]), first)
    with torch.inference_mode():
        x = full.stream(at)[group.prompts].expand(3, -1, -1, -1).clone()
        x[:, :, first:] += torch.randn(x[:, :, first:].shape, generator=torch.Generator().manual_seed(0))
        final = Onward(GroupView(full, group), work)(x[:, :, first:].clone(), at)
        found = unembed(model, final)[:, :, 0]
        wanted = [model.wrapped_model(row, start_at_layer=1)[:, -1] for row in x]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def _layered(changes: dict[str, Any]) -> dict[str, Any]:
    """The kinds of attention of three layers instead of two."""
    types = changes.get("attn_types")
    return changes if types is None else {**changes, "attn_types": [*types, "local"]}


def test_output_positions_that_do_not_change_are_those_of_the_full_model() -> None:
    inner = transformer()
    model = patchable_model(inner, factorized=True, separate_qkv=True, device=torch.device("cpu"))
    full = engine(model, loader())._full[0]
    group = PromptGroup(np.arange(4), 4)
    x = torch.zeros(2, 4, 2, 32)
    view = GroupView(full, group)
    with torch.inference_mode():
        final = Onward(view, 10**6).whole_output(x, view.stream(4))
    assert torch.equal(final[:, :, 4:], x)
    assert torch.equal(final[1, :, :4], full.stream(4)[:, :4])
