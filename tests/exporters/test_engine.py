"""``engine="onnx"`` takes FP32's decisions, and effects of single edges are those of the backend."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pahq_plugin as pahq
from pahq_exporters.engine import OnnxEngine
from pahq_plugin.errors import ConfigError, MetricError, PahqError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.architectures import build, random_architecture
from tests.helpers.refused import refused, untouched
from tests.helpers.replay import replay
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


MODEL = small_model()

INT8 = {"low": "int8", "mlp": "int8"}

SEARCHES: list[tuple[dict[str, Any], type[PahqError], str]] = [
    ({"precision": PrecisionConfig(**INT8, policy="hybrid")}, ConfigError, "hybrid"),
    ({"precision": PrecisionConfig(**INT8, weights="int4")}, ConfigError, "int4"),
    ({"precision": PrecisionConfig(**INT8, parts=("scores",))}, ConfigError, "scores"),
    ({"method": "acdc", "metric": lambda a, *_: a.flatten(1).sum(1) * np.nan}, MetricError, "nan"),
    ({"method": "eap"}, ConfigError, "engine"),
]


@pytest.mark.parametrize(("arguments", "error", "word"), SEARCHES)
def test_searches_that_no_graph_can_do(
    arguments: dict[str, Any], error: type[PahqError], word: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with untouched(tmp_path), refused(error, word):
        pahq.discover(MODEL, loader(), engine="onnx", progress=False, **arguments)


def test_a_graph_has_the_formats_it_was_exported_with() -> None:
    """Whatever asks the engine for others; a search with such a policy is refused before."""
    engine = OnnxEngine.__new__(OnnxEngine)
    with refused(ConfigError, "hybrid"):
        engine.screen_with(pahq.PrecisionConfig())
