"""``engine="onnx"`` takes FP32's decisions, and effects of single edges are those of the backend."""

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
from pahq_exporters.graph.write import DEFAULT
from pahq_plugin.errors import PahqError
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.architectures import build, random_architecture
from tests.helpers.replay import replay
from tests.helpers.rounded import patched_logits, rounded_weights
from tests.helpers.small import loader, small_model

SAMPLE = {("tracr-xproportion", 1e-2), ("tracr-reverse", 1e-3)}
GRID = [
    pytest.param(problem, threshold, marks=[] if (problem, threshold) in SAMPLE else pytest.mark.full)
    for problem in ("ioi", "greater-than", "induction", "tracr-reverse", "tracr-xproportion")
    for threshold in (1e-3, 1e-2)
]


@pytest.mark.parametrize(("problem", "threshold"), GRID)
@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_the_same_decisions(problem: str, threshold: float, method: str) -> None:
    loaded = pahq.load_problem(problem)
    settings: dict[str, Any] = {"threshold": threshold, "metric": loaded.metric, "progress": False}
    model, batches = loaded.model, loaded.train_loader
    exact = pahq.discover(model, batches, method="acdc", **settings)
    found = pahq.discover(model, batches, method=method, engine="onnx", **settings)
    assert found.settings["engine"] == "onnx"
    if method == "pahq":
        assert found.settings["precision"]["activations"] == "high"
        assert all(d.exact for d in found.decisions if d.kept)
        assert not all(d.exact for d in found.decisions)
    if found.circuit != exact.circuit:
        fresh = pahq.load_problem(problem)
        settings.pop("progress")
        report = replay(fresh.model, fresh.train_loader, found.decisions, sample=1.0, **settings)
        assert report.agrees and report.n_ties, report


@pytest.mark.parametrize("seed", [300, 301, 304, 307])
def test_random_architectures(seed: int) -> None:
    architecture = random_architecture(seed)
    model, batches = build(architecture)
    settings: dict[str, Any] = {
        "threshold": 1e-2,
        "metric": architecture.metric,
        "ablation": architecture.ablation,
        "batches": 2,
        "progress": False,
    }
    if architecture.dtype is not torch.float32:
        with pytest.raises(PahqError, match="float64"):
            pahq.discover(model, batches, engine="onnx", **settings)
        return
    exact = pahq.discover(model, batches, method="acdc", **settings)
    found = pahq.discover(model, batches, engine="onnx", **settings)
    if found.circuit != exact.circuit:
        fresh_model, fresh = build(architecture)
        settings.pop("progress")
        report = replay(fresh_model, fresh, found.decisions, sample=1.0, **settings)
        assert report.agrees and report.n_ties, report


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


def test_padded_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small_model(), loader()
    original = type(model.wrapped_model).input_to_embed

    def padded(self: Any, tokens: torch.Tensor, **options: Any) -> Any:
        residual, ids, short, _ = original(self, tokens, **options)
        mask = torch.ones_like(tokens)
        mask[0, 0] = 0
        return residual, ids, short, mask

    monkeypatch.setattr(type(model.wrapped_model), "input_to_embed", padded)
    with pytest.raises(PahqError, match="padded"):
        pahq.discover(model, batches, engine="onnx", progress=False)


def test_hybrid_is_refused() -> None:
    with pytest.raises(PahqError, match="hybrid"):
        pahq.discover(
            small_model(),
            loader(),
            engine="onnx",
            precision=pahq.PrecisionConfig(low="int8", mlp="int8", policy="hybrid"),
            progress=False,
        )


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = small_model()
    pahq.discover(model, loader(), engine="onnx", progress=False, threshold=0.1)
    assert not list(tmp_path.iterdir())
    assert np.isfinite(float(sum(d.effect for d in pahq.discover(
        model, loader(), engine="onnx", precision=pahq.PrecisionConfig(guard=np.inf), threshold=0.1,
        progress=False,
    ).decisions)))  # fmt: skip
    assert not list(tmp_path.iterdir())
