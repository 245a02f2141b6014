"""Messages of exported graphs that only a damaged file, or another policy, provokes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from auto_circuit.utils.ablation_activations import src_ablations
from onnx import TensorProto, helper, numpy_helper

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.check import check_shapes
from pahq_exporters.engine import OnnxEngine
from pahq_plugin.errors import ConfigError, ExportError
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([product], "g", [value("a", 2, 3), value("b", 4, 5)], [value("c", 2, 5)])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    with refused(ExportError, f"{tmp_path / 'g.onnx'}: shapes are inconsistent ("):
        check_shapes(tmp_path / "g.onnx")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model, batch, path = small_model(), next(iter(loader())), tmp_path / "g.onnx"
    export_onnx(model, path, precision=pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full"))
    written = onnx.load(path)
    weight = max(written.graph.initializer, key=lambda one: len(one.raw_data))
    broken = np.full_like(numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    onnx.save(written, path)
    patcher = OnnxPatcher(path, threads=1)
    prompts = patcher.prompts(batch.clean.numpy(), src_ablations(model, batch.corrupt).numpy())
    with refused(ExportError, f"{path} gives ", " that are not finite: its weights are damaged"):
        patcher.run_each(prompts, edges=list(model.edges)[:1])


def test_a_graph_has_the_formats_it_was_exported_with() -> None:
    """Whatever asks the engine for others; a search with such a policy is refused before."""
    engine = OnnxEngine.__new__(OnnxEngine)
    message = "policy='hybrid' chooses formats as it goes, but an exported graph cannot change them;"
    with refused(ConfigError, message):
        engine.screen_with(pahq.PrecisionConfig())
    with refused(ConfigError, "policy='hybrid' chooses formats in a search; pass those of a result"):
        discover(
            small_model(), loader(), engine="onnx",
            precision=pahq.PrecisionConfig(policy="hybrid", activations="high"),
        )  # fmt: skip


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_what_is_whole_is_neither(graph: str, tmp_path: Path) -> None:
    model = small_model()
    path = export_onnx(model, tmp_path / "g.onnx", graph=graph)  # type: ignore[arg-type]
    assert check_shapes(path) == "shapes: inference finds no contradiction"
