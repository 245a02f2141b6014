"""Dense graphs, and sweep graphs beside them, against the host model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.rounded import FULL, TOLERANCE, off, patched_logits
from tests.helpers.small import small_model


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_an_fp32_export_is_the_host(
    graph: Any, problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, (tokens, outputs) = problem.model, prompts
    patcher = OnnxPatcher(
        export_onnx(model, tmp_path / "g.onnx", graph=graph, precision=FULL), threads=1
    )
    assert patcher.description.heads_file is None
    bound = patcher.prompts(tokens.numpy(), outputs.numpy())
    assert np.abs(patcher.sources(tokens.numpy()) - src_ablations(model, tokens).numpy()).max() < 1e-5
    for edge in random.Random(1).sample(canonical_edges(model), 25):
        ours = patcher.run(bound, edges=[edge])
        theirs = patched_logits(model, tokens, outputs, {edge})
        assert off(ours, theirs) <= TOLERANCE, edge
        assert np.array_equal(ours.argmax(-1), theirs.argmax(-1).numpy()), edge


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_any_batch_and_length_from_one_file(graph: Any, tmp_path: Path) -> None:
    """Batches of 1 to 16 prompts, 1 token to the whole context."""
    model = small_model()
    patcher = OnnxPatcher(
        export_onnx(model, tmp_path / "g.onnx", graph=graph, precision=FULL), threads=1
    )
    context, draw = model.cfg.n_ctx, torch.Generator().manual_seed(0)
    edge = canonical_edges(model)[5]
    for batch, length in [(1, 1), (1, context), (16, 1), (16, context), (3, 7), (7, 3), (2, 2)]:
        tokens, corrupt = (
            torch.randint(model.cfg.d_vocab, (batch, length), generator=draw) for _ in range(2)
        )
        outputs = src_ablations(model, corrupt)
        ours = patcher.run(tokens.numpy(), outputs.numpy(), edges=[edge])
        assert off(ours, patched_logits(model, tokens, outputs, {edge})) <= TOLERANCE
        by_tokens = patcher.run(tokens.numpy(), corrupt.numpy(), edges=[edge])
        assert np.abs(by_tokens - ours).max() <= 1e-4
