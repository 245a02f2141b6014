"""Names, types and shapes of a graph's inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pahq_exporters.description import Description
from pahq_exporters.graph.write import DEFAULT, describe
from pahq_exporters.inputs import inputs, misfit, outputs
from tests.helpers.small import small_model

MODEL = small_model()  # 2 layers, 4 heads, a width of 32: 11 sources, 27 destinations


def described(
    graph: Any = "dense", head: Any = None, start: int = 0, positions: Any = "all"
) -> Description:
    return describe(MODEL, graph, DEFAULT, start, head, positions, Path("g.onnx"))


def test_inputs_of_a_dense_graph() -> None:
    found = {value.name: (value.dtype, value.shape) for value in inputs(described())}
    assert found == {
        "tokens": ("int64", ["batch", "pos"]),
        "mask": ("float32", ["candidate", 27, 11]),
        "corrupt": ("float32", [11, "batch", "pos", 32]),
        "hi_layer": ("int64", []),
        "hi_head": ("int64", []),
        "w_hi": ("float32", [4, 32, 8]),
    }


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (described(head=(0, 1)), "tokens mask corrupt"),
        (described(start=1), "residual earlier mask corrupt hi_layer hi_head w_hi"),
        (described("sweep"), "tokens src corrupt dest_layer dest_slot hi_head w_hi"),
    ],
    ids=["fixed", "late", "sweep"],
)
def test_inputs_follow_from_the_kind_of_graph(known: Description, names: str) -> None:
    assert [value.name for value in inputs(known)] == names.split()


def test_outputs_leave_out_positions_as_the_model_does() -> None:
    assert outputs(described())[0].shape == ["candidate", "batch", "pos", 40]
    assert outputs(described("sweep", positions="model"))[0].shape == ["edge", "batch", 40]
    assert outputs(described())[1].shape == [11, "candidate_batch", "pos", 32]


GOOD: dict[str, tuple[str, list[int]]] = {
    "tokens": ("int64", [3, 6]),
    "mask": ("float32", [5, 27, 11]),
    "corrupt": ("float32", [11, 3, 6, 32]),
    "hi_layer": ("int64", []),
    "hi_head": ("int64", []),
    "w_hi": ("float32", [4, 32, 8]),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", ("int32", [3, 6])),
        ("mask", ("float32", [27, 11])),
        ("corrupt", ("float32", [11, 3, 6, 33])),
        ("corrupt", ("float32", [11, 4, 6, 32])),  # not the batch of the tokens
        ("corrupt", ("float32", [11, 3, 7, 32])),  # nor their length
        ("hi_head", ("int64", [1])),
    ],
)
def test_a_misfit_is_named(name: str, value: tuple[str, list[int]]) -> None:
    assert misfit(described(), GOOD) is None
    said = misfit(described(), GOOD | {name: value})
    assert said is not None and said.startswith(name)


def test_missing_and_strange_inputs_are_misfits() -> None:
    missing = {name: value for name, value in GOOD.items() if name != "w_hi"}
    assert misfit(described(), missing)
    assert misfit(described(), GOOD | {"more": ("int64", [])})
