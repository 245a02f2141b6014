"""Rounding in a graph is bit for bit that of torch, in ONNX Runtime and in the reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.rounding import Rounding
from pahq_exporters.session import open_session
from pahq_plugin import PrecisionConfig
from pahq_plugin.precision.formats import get_format

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def special_values(storage: torch.dtype) -> torch.Tensor:
    """Every finite value of a format, the midpoints of neighbours and what lies next to them, values
    around the largest, subnormals of FP32, infinities and NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(storage).float()
    exact = codes[codes.isfinite()].unique()
    middle = (exact[1:] + exact[:-1]) / 2
    grid = torch.cat([exact, middle])
    around = torch.cat([torch.nextafter(grid, torch.full_like(grid, s * torch.inf)) for s in (1, -1)])
    large = torch.tensor([447.0, 448, 449, 463.9, 464, 464.1, 479, 480, 481, 57344, 61439, 61440, 65536])
    tiny = torch.tensor([1e-45, 1e-40, 2**-149, 2**-126, 2**-127, 0.0])
    odd = torch.cat([large, -large, tiny, -tiny])
    return torch.cat([grid, around, odd, torch.tensor([torch.inf, -torch.inf, torch.nan])])


def cast_graph(element: int, clip: float | None) -> onnx.ModelProto:
    """FP32 to FP8 and back."""
    build = Builder()
    x = "x"
    if clip is not None:
        x = build.op("Clip", x, build.constant(-clip), build.constant(clip))
    build.rename(build.op("Cast", build.op("Cast", x, to=element), to=TensorProto.FLOAT), "y")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    return build.model("cast", info[:1], info[1:], {})


def run_both(model: onnx.ModelProto, x: np.ndarray[Any, Any], folder: Path) -> list[Any]:
    """What ONNX Runtime gives in both modes, and the reference evaluator."""
    path = folder / "graph.onnx"
    onnx.save(model, path)
    sessions = [open_session(path, None, mode, 1, "all") for mode in ("speed", "memory")]
    return [
        *(session.run(["y"], {"x": x})[0] for session in sessions),
        ReferenceEvaluator(model).run(["y"], {"x": x})[0],
    ]


@pytest.mark.parametrize("name", FP8)
def test_casts_of_special_values(name: str, tmp_path: Path) -> None:
    """Finite values after a clamp, as everywhere in this project; NaN stays NaN."""
    x, largest = special_values(FP8[name]), get_format(name).largest
    finite = x[x.isfinite()]
    expected = finite.clamp(-largest, largest).to(FP8[name]).float().numpy()
    graph = cast_graph(helper.np_dtype_to_tensor_dtype(np.dtype("float32")), None)
    graph = cast_graph({"fp8_e4m3": 17, "fp8_e5m2": 19}[name], largest)
    for found in run_both(graph, finite.numpy(), tmp_path):
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    for found in run_both(graph, np.array([np.nan], np.float32), tmp_path):
        assert np.isnan(found).all()


@pytest.mark.parametrize("name", FP8)
def test_saturating_casts_without_a_clamp(name: str, tmp_path: Path) -> None:
    """``saturate`` is what this torch does: the largest value, infinities too."""
    x = special_values(FP8[name])
    x = x[~x.isnan()]
    largest = get_format(name).largest
    graph = cast_graph({"fp8_e4m3": 17, "fp8_e5m2": 19}[name], None)
    for found in run_both(graph, x.numpy(), tmp_path):
        over = np.abs(x.numpy()) > largest
        assert np.array_equal(np.abs(found[over]), np.full(over.sum(), largest, np.float32))
        inside = x[torch.from_numpy(~over)].to(FP8[name]).float().numpy()
        assert np.array_equal(found[~over], inside)


@pytest.mark.parametrize("scale", ["row", "head", "tensor", "none"])
@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16"])
def test_activations_are_rounded_as_the_formats_do(name: str, scale: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 33, generator=generator) * torch.logspace(-3, 2, 7)[None, :, None]
    x[2, 3] = 0.0  # a row without a peak
    build = Builder()
    rounding = Rounding(build, PrecisionConfig(low=name, mlp=name, scale=scale))
    build.rename(rounding.activation("x", get_format(name), 0), "y")
    info = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["h", "n", 33]) for each in "xy"]
    expected = get_format(name).quantise_activation(x, scale, 0).dequantise().numpy()
    runtime = run_both(build.model("rounding", info[:1], info[1:], {}), x.numpy(), tmp_path)
    for found in runtime:
        assert np.array_equal(found, expected)


def test_rounded_activations_are_near_the_backend(problem: pahq.Problem, tmp_path: Path) -> None:
    """Values between two codes may fall to either side, but nearer than the format's own error."""
    model, batch = problem.model, next(iter(problem.train_loader))
    precision = pahq.PrecisionConfig(low="int8", mlp="int8", policy="uniform")
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx", precision=precision), threads=1)
    ours, own = patcher.run(batch.clean.numpy()), model(batch.clean).detach().numpy()
    with pahq.mixed_precision(model, precision), torch.no_grad():
        theirs = model(batch.clean).numpy()
    assert np.square(ours - theirs).mean() < 0.1 * np.square(own - theirs).mean()
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node}
