"""The description in a graph's metadata: what it takes, and the edges and heads it knows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_exporters.description import SLOTS, Description, from_json
from pahq_exporters.graph.write import DEFAULT, describe
from pahq_exporters.inputs import inputs, outputs
from pahq_plugin.errors import ExportError, GraphError, PahqError
from tests.helpers.refused import refused
from tests.helpers.small import patchable, small_model, transformer


def described(kind: str = "layer_norm", start_layer: int = 0, **changes: Any) -> Description:
    model = small_model(kind, **changes)
    return describe(model, "dense", DEFAULT, start_layer, None, "all", Path("g.onnx"))


KNOWN = described()
BY_POSITION = describe(
    patchable(transformer(), seq_len=3), "dense", DEFAULT, 0, None, "all", Path("g.onnx")
)


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(KNOWN.to_json()) | changes)


@pytest.mark.parametrize(
    "one",
    [
        KNOWN,
        BY_POSITION,
        described(start_layer=1),
        described("parallel"),
        described(attn_only=True),
        describe(small_model(), "sweep", DEFAULT, 0, None, "model", Path("g.onnx")),
        describe(small_model(), "dense", DEFAULT, 0, (1, 3), "all", Path("g.onnx")),
    ],
)
def test_it_comes_back(one: Description) -> None:
    assert from_json(one.to_json(), "g.onnx") == one


def test_a_file_of_somebody_else_is_refused() -> None:
    with refused(ExportError, "g.onnx"):
        from_json(None, "g.onnx")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"pahq"', "3", "[" * 100_000, "{}", "\ud800"])
def test_what_is_no_description_is_refused(text: str) -> None:
    with refused(ExportError, "g.onnx"):
        from_json(text, "g.onnx")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "a\nb"])
def test_another_format_is_refused(version: Any) -> None:
    with refused(ExportError, "format"):
        from_json(changed(format=version), "g.onnx")


SIZES = ("n_layers", "n_heads", "d_head", "d_model", "n_ctx", "d_vocab", "d_vocab_out")
DEST = {"name": "A0.0.Q", "layer": 0, "slot": "q", "head": 0, "reads": 1}
WRONG: dict[str, list[Any]] = {
    **{size: [0, -1, 1.0, "2", None, True, 2**40] for size in SIZES},
    "graph": ["sparse", None, ["dense"]],
    "positions": ["first", None, 3],
    "high": ["low", None, "fixed", "none"],
    "fixed_head": [[0, 1]],
    "id": [None, 3],
    "source_model": [None, 3],
    "seq_len": [0, -1, 17, "3", 3.0],
    "start_layer": [-1, 2, 0.0, "0", 1],
    "n_earlier": [1, -1, None],
    "sources": [[], ["A", "A"], [1, 2], None, [["A"]]],
    "destinations": [[], None, [DEST, DEST], [{}], [3]]
    + [[DEST | change] for change in (
        {"name": 3}, {"name": ["A"]}, {"layer": 1.0}, {"layer": -1}, {"layer": 2}, {"slot": "x"},
        {"slot": ["q"]}, {"slot": "mlp"}, {"slot": "output", "head": -1}, {"head": 4}, {"head": -1},
        {"head": "0"}, {"reads": 0}, {"reads": 99}, {"reads": "1"}, {"other": 1})],
    "precision": [3, "int8", []],
    "versions": [None, []],
    "heads_file": [None, "", ".", "..", "../h", "/etc/passwd", "a\\b", "a\0b", 3],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(k, v) for k, values in WRONG.items() for v in values])
def test_a_wrong_field_is_refused(field: str, value: Any) -> None:
    with refused(ExportError, "g.onnx"):
        from_json(changed(**{field: value}), "g.onnx")


def test_a_missing_or_strange_field_is_refused() -> None:
    for field in json.loads(KNOWN.to_json()).keys() - {"source_configuration"}:  # of older files
        record = json.loads(KNOWN.to_json())
        del record[field]
        with refused(ExportError):
            from_json(json.dumps(record), "g.onnx")
    with refused(ExportError, "more"):
        from_json(changed(**{"more\nof it": 1}), "g.onnx")


def test_a_fixed_head_is_a_head() -> None:
    fixed = {"high": "fixed", "heads_file": None}
    assert from_json(changed(**fixed, fixed_head=[1, 3]), "g").fixed_head == (1, 3)
    for head in ([2, 0], [0, 4], [0], "12", [0.0, 1], {}, [-1, 0]):
        with refused(ExportError):
            from_json(changed(**fixed, fixed_head=head), "g.onnx")


EDGES: dict[str, tuple[object, str]] = {
    "no arrow": ("A0.1", "A0.1"),
    "empty": ("", "''"),
    "without Q": ("MLP 0->A1.0", "A1.0"),
    "line break": ("A0.1\n->MLP 1", "A0.1\\n"),
    "bytes": (b"A0.1->MLP 1", "A0.1"),
    "none": (None, "None"),
    "of one position": (SimpleNamespace(name="A0.1->MLP 1", seq_idx=2), "@2"),
    "nameless": (SimpleNamespace(name=None), "None"),
}
"""Besides those of tests/messages."""


@pytest.mark.parametrize("case", EDGES)
def test_an_edge_outside_the_graph_is_refused(case: str) -> None:
    edge, word = EDGES[case]
    with refused(GraphError, word):
        KNOWN.index_of(edge)


def test_edges_of_other_models_are_taken_by_name() -> None:
    larger = small_model(n_layers=3, n_heads=6, d_head=8)
    inside = set(KNOWN.edges())
    for edge in larger.edges:
        if edge.name in inside:
            assert len(KNOWN.index_of(edge)) == 2
        else:
            with refused(GraphError, repr(edge.name)):
                KNOWN.index_of(edge)


@pytest.mark.parametrize("place", ["", " @3", " @-1", " @x", " @²", " @01", " @" + "1" * 5000, " @1.0"])
def test_edges_of_single_positions_have_one(place: str) -> None:
    assert BY_POSITION.index_of("A0.1->MLP 1 @2") == (2, *KNOWN.index_of("A0.1->MLP 1"))
    with refused(GraphError, "0 to 2"):
        BY_POSITION.index_of("A0.1->MLP 1" + place)


@pytest.mark.parametrize(
    "head", [(2, 0), (-1, 0), (0, 4), (0, -1), (0,), (0, 1, 2), (0.0, 1), (True, 0), "0.1", 1, None, {}]
)
def test_a_head_outside_the_graph_is_refused(head: object) -> None:
    with refused(GraphError, "head"):
        KNOWN.check_head(head)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-1, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["dense", "sweep", "input", "fixed", "none", "last", "all", *SLOTS, "A0.0.Q"])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, inner in inside if isinstance(value, (dict, list)) else ():
        found += leaves(inner, (*path, key)) if isinstance(inner, (dict, list)) else [(*path, key)]
    return found


RECORD = json.loads(KNOWN.to_json())


@settings(max_examples=250, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(leaves(RECORD)), JSON | WORDS), max_size=3))
def test_any_description_is_read_or_refused(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """One that is read can be used."""
    record = json.loads(KNOWN.to_json())
    for (*path, last), value in changes:
        place = record
        try:
            for key in path:
                place = place[key]
            place[last] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    try:
        read = from_json(json.dumps(record), "g.onnx")
    except PahqError as error:
        assert len(str(error).splitlines()) == 1
        return
    names = list(read.edges())
    assert len(names) == read.n_edges
    assert len(read.indices(names[:3])[0]) == len(read.mask_shape)
    assert inputs(read) and outputs(read)
    json.loads(read.to_json())
