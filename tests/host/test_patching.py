"""Forwards that start at the lowest patched block are those of the whole model."""

from __future__ import annotations

import random

import pytest
import torch
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.graph_utils import set_all_masks
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.host.graph import block, canonical_edges
from pahq_plugin.host.patching import (
    PatchBatch,
    ablated_sources,
    patched_logits,
    prepare,
    source_outputs,
)
from pahq_plugin.host.prompts import collect_batches
from tests.helpers.rounded import patched_logits as whole_forward
from tests.helpers.small import KINDS, loader, small_model

CLOSE = 1e-5
"""Of logits of size 1; both sides round in FP32."""


def prepared_batch(model: PatchableModel, ablation: AblationType = AblationType.RESAMPLE) -> PatchBatch:
    prompts = loader()
    (batch,) = prepare(model, prompts, collect_batches(model, prompts, 1), ablation)
    return batch


def patched(
    model: PatchableModel, batch: PatchBatch, edges: set[Edge], start: int | None
) -> torch.Tensor:
    set_all_masks(model, 0.0)
    for edge in edges:
        edge.patch_mask(model).data[edge.patch_idx] = 1.0
    found = patched_logits(model, batch, batch.clean.clone(), start)
    set_all_masks(model, 0.0)
    return found


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_start_at_the_lowest_patched_block_is_the_whole_forward(kind: str, start: int) -> None:
    model = small_model(kind)
    batch = prepared_batch(model)
    above = [edge for edge in canonical_edges(model) if block(edge.dest) >= start]
    for seed in range(3):
        edges = set(random.Random(seed).sample(above, 12))
        expected = whole_forward(model, batch.batch.clean, batch.ablated, edges)[model.out_slice]
        for at in (start, None):
            assert (patched(model, batch, edges, at) - expected).abs().max() <= CLOSE
        assert (expected - batch.logits).abs().max() > 100 * CLOSE


def test_nothing_patched_is_the_clean_run() -> None:
    model = small_model()
    batch = prepared_batch(model)
    for start in (None, 0, 1):
        assert (patched(model, batch, set(), start) - batch.logits).abs().max() <= CLOSE
    assert len(batch.residuals) == model.cfg.n_layers


def test_everything_patched_is_the_corrupt_run() -> None:
    """With resampling: every source then holds its output on the corrupt prompts."""
    model = small_model()
    batch = prepared_batch(model)
    corrupt = model(batch.batch.corrupt)[model.out_slice]
    assert (patched(model, batch, model.edges, None) - corrupt).abs().max() <= CLOSE


def test_ablated_sources_by_kind() -> None:
    model, prompts = small_model(), loader()
    batches = collect_batches(model, prompts, None)

    def ablated(kind: AblationType) -> torch.Tensor:
        (found,) = ablated_sources(model, prompts, batches, kind)
        return found

    corrupt = source_outputs(model, batches[0].corrupt)
    assert torch.equal(ablated(AblationType.RESAMPLE), corrupt)
    assert not ablated(AblationType.ZERO).any()
    mean = ablated(AblationType.TOKENWISE_MEAN_CORRUPT)
    assert (mean - corrupt.mean(dim=1, keepdim=True)).abs().max() <= CLOSE
