"""Graph JSON with anything changed is read or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_exporters.interchange.graph_json import GraphJson, read_graph_json
from pahq_plugin.errors import PahqError, ResultError
from tests.helpers.interchange import EDGE, TODAYS, changed, one_block

ODD = st.sampled_from((None, True, 0, 10**400, 1e39, math.nan, -math.inf, "1", [], {}))

VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)

KEYS = st.text() | st.sampled_from(
    ("cfg", "nodes", "edges", "score", "in_graph", "input", "m1", "a0.h0", "a1.h0", "m0->m0", "neurons",
     "input->a0.h0<q>", "input->a0.h0<x>", "logits->m0", "n_layers")
)  # fmt: skip


def mutate(draw: st.DrawFn, node: Any) -> Any:
    """One value somewhere inside replaced, taken out, renamed or added."""
    if not isinstance(node, dict) or not node or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(list(node)))
    match draw(st.integers(0, 7)):
        case 0:
            return {k: v for k, v in node.items() if k != key}
        case 1:
            return node | {draw(KEYS): draw(VALUES)}
        case 2:
            return {draw(KEYS) if k == key else k: v for k, v in node.items()}
        case _:
            return node | {key: mutate(draw, node[key])}


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    graph = json.loads(TODAYS)
    for _ in range(draw(st.integers(1, 3))):
        graph = mutate(draw, graph)
    return json.dumps(graph)


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    start = draw(st.integers(0, len(TODAYS)))
    end = start + draw(st.integers(0, 20))
    return TODAYS[:start] + draw(st.text(max_size=6)) + TODAYS[end:]


def read_or_refuse(data: bytes, folder: Path) -> GraphJson | PahqError:
    (folder / "graph.json").write_bytes(data)
    try:
        return read_graph_json(folder / "graph.json", one_block())
    except PahqError as error:
        assert str(folder / "graph.json") in str(error) and len(str(error).splitlines()) == 1
        return error


def assert_sound(read: GraphJson | PahqError) -> None:
    if isinstance(read, GraphJson):
        assert read.scores.keys() == one_block().edges >= read.circuit
        assert all(type(score) is float and math.isfinite(score) for score in read.scores.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=400, deadline=None)
@given(text=mutated_texts())
def test_a_mutated_file_is_read_or_refused(text: str, folder: Path) -> None:
    assert_sound(read_or_refuse(text.encode(), folder))


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(("score", "in_graph")), value=ODD | VALUES)
def test_any_value_in_an_edge_is_read_or_refused(key: str, value: Any, folder: Path) -> None:
    text = json.dumps(changed(json.loads(TODAYS), (*EDGE, key), value))
    assert_sound(read_or_refuse(text.encode(), folder))


@settings(max_examples=200, deadline=None)
@given(text=damaged_texts())
def test_a_damaged_file_is_read_or_refused(text: str, folder: Path) -> None:
    assert_sound(read_or_refuse(text.encode("utf-8", "surrogatepass"), folder))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(data: bytes, folder: Path) -> None:
    assert isinstance(read_or_refuse(data, folder), ResultError)
