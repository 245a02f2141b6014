"""Nodes behind edge labels, and their places."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given

from pahq_plugin.errors import ResultError
from pahq_plugin.labels import ends, kind_of
from pahq_plugin.results.drawing.nodes import ROW_HEIGHT, layout, natural_order
from tests.helpers.records import acyclic_records, transformer_edges


def rows(labels: list[str]) -> dict[str, int]:
    return {node.name: round(-node.y / ROW_HEIGHT) for node in layout(labels)}


def test_a_transformer_has_a_row_of_heads_and_an_mlp_above_for_each_block() -> None:
    assert rows(transformer_edges(2, 2)) == {
        "Resid Start": 0, "A0.0": 1, "A0.1": 1, "MLP 0": 2, "A1.0": 3, "A1.1": 3, "MLP 1": 4,
        "Resid End": 5,
    }  # fmt: skip


def test_heads_stand_in_columns_and_mlps_between_them() -> None:
    for n_heads in (1, 2, 3, 8):
        places = {node.name: node for node in layout(transformer_edges(2, n_heads))}
        xs = [places[f"A0.{head}"].x for head in range(n_heads)]
        assert xs == [places[f"A1.{head}"].x for head in range(n_heads)] == sorted(set(xs))
        assert sum(xs) == pytest.approx(0)
        lane = {places[name].x for name in ("Resid Start", "MLP 0", "MLP 1", "Resid End")}
        assert len(lane) == 1 and not lane & set(xs)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (4, 8), (12, 12)])
def test_nodes_do_not_overlap(n_layers: int, n_heads: int) -> None:
    nodes = layout(transformer_edges(n_layers, n_heads))
    assert all(len(node.name) * 7 < node.width for node in nodes)
    for left, right in pairwise(nodes):
        if left.y == right.y:
            assert right.x - left.x > (left.width + right.width) / 2


def test_places_follow_from_the_set_of_edges_alone() -> None:
    labels = transformer_edges(3, 4)
    shuffled = random.Random(0).sample(labels, len(labels))
    assert layout(labels) == layout(shuffled)
    others = ["in->B2", "in->B10", "B2->out", "B10->out"]
    assert layout(others) == layout(others[::-1])


def test_other_names_are_put_in_rows_by_longest_path() -> None:
    labels = ["in->a", "in->b", "a->b", "b->out", "in->out"]
    assert rows(labels) == {"in": 0, "a": 1, "b": 2, "out": 3}


def test_names_of_a_transformer_among_others_are_put_in_rows_by_longest_path() -> None:
    assert rows(["embed->A5.0", "A5.0->Resid End"]) == {"embed": 0, "A5.0": 1, "Resid End": 2}


def test_numbers_in_names_count_as_numbers() -> None:
    assert sorted(["B10", "B2", "A"], key=natural_order) == ["A", "B2", "B10"]


def test_long_names_are_shortened_and_kept() -> None:
    name = "a" * 40
    node = next(node for node in layout([f"{name}->b"]) if node.name == name)
    assert len(node.label) < 20 and node.label.endswith("…") and node.width < 200


@pytest.mark.parametrize("labels", [["a->b", "b->a"], ["a->a"]])
def test_a_circle_is_refused(labels: list[str]) -> None:
    with pytest.raises(ResultError, match="cycle"):
        layout(labels)


def test_no_edges_have_no_nodes() -> None:
    assert layout([]) == []


@given(acyclic_records())
def test_any_names_are_placed_once_and_above_what_they_read(record: dict[str, Any]) -> None:
    labels = [entry["edge"] for entry in record["decisions"]]
    places = {node.name: node for node in layout(labels)}
    assert set(places) == {name for label in labels for name in ends(label)[:2]}
    assert len({(node.x, node.y) for node in places.values()}) == len(places)
    if any(kind_of(name) == "other" for name in places):
        for label in labels:
            source, destination, _ = ends(label)
            assert places[source].y > places[destination].y
