"""Weights in a graph's file: one byte each, also once it is loaded."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

import pahq_plugin as pahq
from pahq_exporters import export_onnx
from pahq_exporters.session import _options
from tests.helpers.rounded import FULL
from tests.helpers.small import small_model


def fp8_weights(model: onnx.ModelProto) -> int:
    return sum(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in model.graph.initializer)


def dequantisations(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "DequantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize("level", ["disable", "basic", "all"])
@pytest.mark.parametrize(("graph", "per_block"), [("dense", 6), ("sweep", 4)])
def test_one_byte_a_weight_stays(graph: str, per_block: int, level: str, tmp_path: Path) -> None:
    """W_Q, W_K, W_V and W_O (the first three as one in a sweep graph), W_in and W_out of each block."""
    model = pahq.load_problem("ioi").model
    path = export_onnx(model, tmp_path / "g.onnx", graph=graph)  # type: ignore[arg-type]
    expected = per_block * model.cfg.n_layers
    counts = {}
    for mode in ("speed", "memory"):
        options, arguments = _options(ort, mode, 1, level)
        options.optimized_model_filepath = str(tmp_path / f"{mode}.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **arguments)
        optimised = onnx.load(tmp_path / f"{mode}.onnx")
        counts[mode] = fp8_weights(optimised), dequantisations(optimised)
    written = onnx.load(path)
    assert (fp8_weights(written), dequantisations(written)) == (expected, expected)
    assert counts["memory"] == (expected, expected)
    assert counts["speed"][1] == (0 if level != "disable" else expected)


def test_a_graph_with_low_weights_is_small(tmp_path: Path) -> None:
    """What is low takes at most 0.35 of its FP32 bytes, scales included."""
    model = small_model(d_model=256, n_heads=4, d_head=64, d_mlp=1024, n_layers=2)
    low = export_onnx(model, tmp_path / "low.onnx").stat().st_size
    full = export_onnx(model, tmp_path / "full.onnx", precision=FULL).stat().st_size
    weights = 4 * 2 * 12 * 256**2
    assert weights - (full - low) <= 0.35 * weights
