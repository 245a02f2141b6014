"""(Now - ablated) outputs of sources against the host's own forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental import differences
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from tests.helpers.architectures import build, random_architecture


@pytest.mark.parametrize("block_bytes", [1, differences.BLOCK_BYTES])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_lost_is_the_sum_of_what_the_host_computes(
    seed: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "BLOCK_BYTES", block_bytes)
    architecture = random_architecture(seed)
    model, loader = build(architecture)
    prompts, ablation = collect_batches(model, loader, 1), ablation_type(architecture.ablation)
    engine = IncrementalEngine(Question(model, loader, prompts, ablation, resolve_metric("mse", 2)))
    prepared = prepare(model, loader, prompts, ablation)[0]
    expected = prepared.clean - prepared.ablated  # [source, batch, pos, d_model]
    found, graph = engine._states[0].differences, engine._graph
    drawn = np.random.default_rng(seed)
    n_positions, positions = expected.shape[2], graph.sets.all
    for _ in range(2):  # the second time from the memo
        shape = (3, n_positions if graph.positional else 1, len(expected))
        gone = drawn.random(shape) < 0.5
        weights = torch.from_numpy(gone).expand(-1, n_positions, -1).to(expected)
        sums = -torch.einsum("rps,sbpd->rbpd", weights, expected)
        lost = found.lost(gone, positions)
        torch.testing.assert_close(lost, sums.to(lost), rtol=1e-4, atol=1e-5)
    changing = torch.from_numpy(found.changing(len(expected)))
    visible = (expected.abs() > 1e-5).any(dim=3).any(dim=1)
    assert not bool((visible & ~changing).any())
