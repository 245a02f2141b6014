"""Graphs of one small model, for the tests that open or run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_exporters import export_onnx
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.small import small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With graphs of one model."""
    made, model = tmp_path_factory.mktemp("graphs"), small_model()
    export_onnx(model, made / "dense.onnx")
    export_onnx(model, made / "sweep.onnx", graph="sweep")
    export_onnx(model, made / "full.onnx", precision=PrecisionConfig(low="fp32", mlp="fp32"))
    return made
