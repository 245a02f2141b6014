"""The head that is in FP32, alone, against the host model with rounded weights written into it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import torch

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.graph.write import DEFAULT
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.rounded import TOLERANCE, off, patched_logits, rounded_weights


def test_every_head_of_the_bundled_model_is_high_alone(
    problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    """Weight-only E4M3: equal to the host with rounded weights, and at least ten times as far from the
    graph with all heads low."""
    model, (tokens, outputs) = problem.model, prompts
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx"), threads=1)
    bound = patcher.prompts(tokens.numpy(), outputs.numpy())
    all_low = patcher.run(bound, head=None)
    edges = canonical_edges(model)
    patched = set(random.Random(0).sample(edges, 30))
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            ours = patcher.run(bound, head=(layer, head))
            with rounded_weights(model, DEFAULT, (layer, head)):
                theirs = model(tokens)
                theirs_patched = patched_logits(model, tokens, outputs, patched)
            error = off(ours, theirs)
            assert error <= TOLERANCE, (layer, head)
            assert np.array_equal(ours.argmax(-1), theirs.argmax(-1).numpy())
            assert off(all_low, theirs) >= 10 * max(error, 1e-7), (layer, head)
            ours_patched = patcher.run(bound, edges=patched, head=(layer, head))
            assert off(ours_patched, theirs_patched) <= TOLERANCE, (layer, head)


def test_a_head_fixed_at_export(
    problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, (tokens, _) = problem.model, prompts
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "f.onnx", head=(1, 5)), threads=1)
    assert not any(node.op_type == "If" for node in onnx.load(tmp_path / "f.onnx").graph.node)
    with rounded_weights(model, DEFAULT, (1, 5)):
        theirs = model(tokens)
    assert off(patcher.run(tokens.numpy()), theirs) <= TOLERANCE
    assert off(patcher.run(tokens.numpy(), head=(1, 5)), theirs) <= TOLERANCE
