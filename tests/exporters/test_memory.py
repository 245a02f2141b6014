"""In memory mode a loaded graph holds weights of one byte; all levels give the same numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.session import LEVELS, _options
from tests.helpers.small import small_model

FULL = pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full")


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


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_every_level_of_optimisation_gives_the_same_numbers(graph: str, tmp_path: Path) -> None:
    model = small_model()
    path = export_onnx(model, tmp_path / "g.onnx", graph=graph)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    tokens, corrupt = (
        torch.randint(model.cfg.d_vocab, (3, 6), generator=draw).numpy() for _ in range(2)
    )
    found = [
        OnnxPatcher(path, mode=mode, threads=1, level=level).run(tokens, corrupt, edges=["A0.1->A1.2.K"])
        for mode in ("speed", "memory")
        for level in LEVELS
    ]
    size = np.abs(found[0]).max()
    assert all(np.abs(each - found[0]).max() <= 2e-6 * size for each in found[1:])


PEAK = """
import sys
import numpy as np
from pahq_exporters.runtime.patcher import OnnxPatcher
patcher = OnnxPatcher(sys.argv[1], mode=sys.argv[2], threads=1)
patcher.run(np.zeros((1, 2), np.int64))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


def test_memory_mode_takes_less_than_fp32(tmp_path: Path) -> None:
    """Most of this model's weights are those of heads and MLPs: 38 MB in FP32."""
    model = small_model(d_model=512, n_heads=8, d_head=64, d_mlp=2048, n_layers=3)
    export_onnx(model, tmp_path / "low.onnx")
    export_onnx(model, tmp_path / "full.onnx", precision=FULL)
    low, full = (
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(tmp_path / f"{name}.onnx"), mode],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name, mode in (("low", "memory"), ("full", "speed"))
    )
    weights = 4 * 3 * 12 * 512**2
    assert low < full - 0.4 * weights, (low, full, weights)


def test_a_graph_with_low_weights_is_small(tmp_path: Path) -> None:
    """What is low takes at most 0.35 of its FP32 bytes, scales included."""
    model = small_model(d_model=256, n_heads=4, d_head=64, d_mlp=1024, n_layers=2)
    low = export_onnx(model, tmp_path / "low.onnx").stat().st_size
    full = export_onnx(model, tmp_path / "full.onnx", precision=FULL).stat().st_size
    weights = 4 * 2 * 12 * 256**2
    assert weights - (full - low) <= 0.35 * weights
