"""Sweep graphs: effects of single edges, and graphs of the later blocks alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.graph.write import DEFAULT
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.rounded import FULL, TOLERANCE, off, patched_logits, rounded_weights


def test_a_later_start(problem: pahq.Problem, tmp_path: Path) -> None:
    """The graph of blocks 2 and 3, fed with what comes before."""
    model, batch = problem.model, next(iter(problem.train_loader))
    clean, corrupt = (src_ablations(model, tokens) for tokens in (batch.clean, batch.corrupt))
    _, cache = model.run_with_cache(batch.clean, names_filter=["blocks.2.hook_resid_pre"])
    residual = cache["blocks.2.hook_resid_pre"].detach()
    late = [e for e in canonical_edges(model) if e.dest.module_name.split(".")[1] in "23"]
    for graph in ("dense", "sweep"):
        path = export_onnx(model, tmp_path / "late.onnx", graph=graph, precision=FULL, start_layer=2)  # type: ignore[arg-type]
        patcher = OnnxPatcher(path, threads=1)
        assert set(patcher.description.edges()) == {edge.name for edge in late}
        earlier = clean[: patcher.description.n_earlier]
        bound = patcher.prompts(
            residual=residual.numpy(), earlier=earlier.numpy(), corrupt=corrupt.numpy()
        )
        for edge in random.Random(3).sample(late, 12):
            theirs = patched_logits(model, batch.clean, corrupt, {edge})
            assert off(patcher.run(bound, edges=[edge]), theirs) <= TOLERANCE, (graph, edge)


def kl(logits: torch.Tensor, clean: torch.Tensor) -> float:
    ours, theirs = clean.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.parametrize("count", [20, pytest.param(None, marks=pytest.mark.full)])
def test_effects_of_single_edges(count: int | None, tmp_path: Path) -> None:
    """Of all edges, within 1e-3 of themselves or 1e-6; in a sweep graph of E4M3 weights."""
    problem = pahq.load_problem("ioi")
    model, batch = problem.model, next(iter(problem.train_loader))
    edges = canonical_edges(model)
    edges = edges if count is None else random.Random(0).sample(edges, count)
    outputs = src_ablations(model, batch.corrupt)
    patcher = OnnxPatcher(
        export_onnx(model, tmp_path / "s.onnx", graph="sweep", positions="model"), threads=1
    )
    prompts = patcher.prompts(batch.clean.numpy(), outputs.numpy())
    ours = patcher.run_each(prompts, edges=edges)
    for edge, logits in zip(edges, ours, strict=True):
        head = None
        if edge.dest.head_idx is not None:
            head = (int(edge.dest.module_name.split(".")[1]), edge.dest.head_idx)
        with rounded_weights(model, DEFAULT, head):
            clean = patched_logits(model, batch.clean, outputs, set())[model.out_slice]
            theirs = patched_logits(model, batch.clean, outputs, {edge})[model.out_slice]
        found, expected = kl(torch.from_numpy(logits), clean), kl(theirs, clean)
        assert abs(found - expected) <= max(1e-6, 1e-3 * abs(expected)), (edge, found, expected)
