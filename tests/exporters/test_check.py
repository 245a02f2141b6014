"""Validation of graphs: shapes, and the formats that a hybrid search chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import pahq_plugin as pahq
from pahq_exporters.check import check, check_shapes, for_blocks
from pahq_exporters.export import export_onnx
from pahq_plugin.errors import ExportError
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


def hybrid(**formats: str) -> pahq.PrecisionConfig:
    named = {name.replace("_", "."): chosen for name, chosen in formats.items()}
    return pahq.PrecisionConfig(
        low="fp32", mlp="fp32", policy="hybrid", activations="high", formats=named
    )


FORMATS: list[dict[str, str]] = [
    {"blocks_0_mlp": "int8"},
    {"blocks_1_qkv": "int8", "blocks_1_mlp": "fp8_e4m3"},
    {"blocks_2_output": "int8"},
    {"unembed": "int8"},
]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_formats_of_single_blocks(formats: dict[str, str], tmp_path: Path) -> None:
    model = small_model(n_layers=3)
    path = export_onnx(model, tmp_path / "g.onnx", precision=hybrid(**formats))
    lines = check(path, model, loader(), trials=2)
    assert [line.split(":")[0] for line in lines[:3]] == ["names", "shapes", "meaning"]


def test_the_tiny_model_has_the_formats_of_the_first_blocks_that_have_any() -> None:
    given = hybrid(blocks_3_mlp="int8", blocks_5_qkv="bf16", blocks_7_mlp="fp16", unembed="int8")
    found: dict[str, Any] = dict(for_blocks(given, 2).formats)
    assert found == {"blocks.0.mlp": "int8", "blocks.1.qkv": "bf16", "unembed": "int8"}
    assert for_blocks(given, 2).policy == "hybrid"
    plain = pahq.PrecisionConfig()
    assert for_blocks(plain, 2) == plain


def test_a_wrong_graph_is_still_found(tmp_path: Path) -> None:
    model = small_model(n_layers=3)
    path = export_onnx(model, tmp_path / "g.onnx", precision=hybrid(**FORMATS[0]))
    with pytest.raises(ExportError, match="differ"):
        check(path, small_model(seed=1, n_layers=3), loader(), trials=2)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([product], "g", [value("a", 2, 3), value("b", 4, 5)], [value("c", 2, 5)])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    with refused(ExportError, str(tmp_path / "g.onnx")):
        check_shapes(tmp_path / "g.onnx")


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_what_is_whole_is_neither(graph: str, tmp_path: Path) -> None:
    model = small_model()
    path = export_onnx(model, tmp_path / "g.onnx", graph=graph)  # type: ignore[arg-type]
    assert check_shapes(path) == "shapes: inference finds no contradiction"
