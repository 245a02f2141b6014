"""Streams and projections of the full model against the activations of a plain forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pahq_plugin.engines.incremental.full_model import GroupView
from pahq_plugin.engines.incremental.prompt_groups import PromptGroup
from tests.helpers.alone import engine
from tests.helpers.small import KINDS, activations, attention_names, loader, small_model, tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_projections_are_those_of_a_plain_forward(kind: str, layer: int) -> None:
    model, prompts = small_model(kind), loader()
    full = engine(model, prompts)._full[0]
    (batch,) = prompts
    stage = next(i for i, s in enumerate(full.graph.stages) if s.kind == "head" and s.layer == layer)
    expected = activations(model, attention_names(layer), batch.clean)
    for letter in "qkv":
        found = full.projections(stage, letter).permute(1, 2, 0, 3)  # batch pos head d_head
        wanted = expected[f"blocks.{layer}.attn.hook_{letter}"]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_those_of_a_plain_forward(kind: str) -> None:
    model, prompts = small_model(kind), loader()
    full = engine(model, prompts)._full[0]
    (batch,) = prompts
    found = activations(model, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"], batch.clean)
    for at, stage in enumerate(full.graph.stages):
        if stage.kind == "output" or (stage.kind == "head" and stage.layer == 1):
            layer = 1 if stage.kind == "output" else 0
            wanted = found[f"blocks.{layer}.hook_resid_post"]
            torch.testing.assert_close(full.stream(at), wanted, rtol=1e-4, atol=1e-5)


def test_only_the_output_position_is_read_in_the_last_layer() -> None:
    full = engine(small_model(), loader())._full[0]
    kinds = [(stage.kind, stage.layer) for stage in full.graph.stages]
    assert kinds == [("head", 0), ("mlp", 0), ("head", 1), ("mlp", 1), ("output", 1)]
    streams = [full.layout.stream(at, 2).array.tolist() for at in range(5)]
    assert streams == [[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5], [5], [5]]
    assert [full.layout.reader(at) for at in range(4)] == [1, 2, 3, 4]
    assert full.layout.written(2, 2).array.tolist() == [5]


def test_in_a_parallel_block_the_next_block_is_the_first_reader() -> None:
    full = engine(small_model("parallel"), loader())._full[0]
    assert [full.layout.reader(at) for at in range(4)] == [2, 2, 4, 4]


def test_a_view_holds_the_prompts_of_its_group() -> None:
    full = engine(small_model(), loader())._full[0]
    view = GroupView(full, PromptGroup(np.array([1, 3]), 2))
    assert torch.equal(view.residual(2), full.stream(2)[[1, 3], 2:])
    assert torch.equal(view.some(tokens()[..., None]), tokens()[[1, 3], :, None])
