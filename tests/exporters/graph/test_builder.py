"""Graphs by hand: what is built is valid ONNX and computes what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from pahq_exporters.graph.builder import STORED, Builder, value_info
from pahq_exporters.inputs import Value

X = Value("x", "float32", ["n", 4])


def computed(build: Builder, result: str, x: np.ndarray[Any, Any], rank: int) -> Any:
    """What a graph of one input gives for it, checked before it runs."""
    build.rename(result, "y")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank)
    model = build.model("test", [value_info(X)], [output], {"a": "b"})
    onnx.checker.check_model(model)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"a": "b"}
    return ReferenceEvaluator(model).run(["y"], {"x": x})[0]


def rows(n: int) -> np.ndarray[Any, Any]:
    return np.arange(4.0 * n, dtype=np.float32).reshape(n, 4)


def test_equal_constants_are_stored_once() -> None:
    build = Builder()
    assert build.constant(1.0) == build.constant(1) != build.scalar(1)
    assert build.integers(2, 3) == build.integers(2, 3) != build.integers(2)
    assert build.constant([1.0]) != build.constant(1.0)
    assert len(build.initialisers) == 5


def test_names_are_unique_and_say_where_they_are_from() -> None:
    build = Builder()
    with build.scope("block"), build.scope("mlp"):
        inside = [build.name("Add"), build.name("Add")]
    outside = build.name("Add")
    assert len({*inside, outside}) == 3
    assert all(name.startswith("block/mlp/Add") for name in inside) and "/" not in outside


def test_slices_and_shapes_known_when_it_runs() -> None:
    build, x = Builder(), rows(3)
    middle = build.slice("x", 1, 1, 3)
    flat = build.reshape(middle, 1, build.dimension("x", 0), 2)
    assert np.array_equal(computed(build, flat, x, 3), x[:, 1:3][None])


def test_the_last_axis_has_a_size_too() -> None:
    build = Builder()
    size = build.op("Cast", build.dimension("x", -1), to=onnx.TensorProto.FLOAT)
    assert computed(build, size, rows(3), 1).tolist() == [4.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_branch_reads_what_was_made_before(sign: float) -> None:
    build, x = Builder(), sign * (1 + rows(2))
    double = build.op("Add", "x", "x")
    total = build.op("ReduceSum", "x", keepdims=0)
    positive = build.op("Greater", total, build.constant(0.0))
    (result,) = build.branch(
        positive, lambda: [build.op("Neg", double)], lambda: [build.op("Add", double, "x")]
    )
    assert np.array_equal(computed(build, result, x, 2), -2 * x if sign > 0 else 3 * x)


@pytest.mark.parametrize("dtype", STORED)
def test_tensors_are_stored_bit_by_bit(dtype: torch.dtype) -> None:
    build, value = Builder(), torch.tensor([[0, 1], [2, 3]]).to(dtype).T  # not contiguous
    build.tensor("w", value)
    proto = build.initialisers["w"]
    assert list(proto.dims) == [2, 2] and proto.data_type == STORED[dtype]
    assert proto.raw_data == value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
