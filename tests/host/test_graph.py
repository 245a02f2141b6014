"""The canonical order of edges and what nodes are, written out for a model of one block."""

from __future__ import annotations

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.host.graph import (
    block,
    canonical_edges,
    check_order,
    find_edge,
    head,
    kind,
    slot,
    sources,
)
from tests.helpers.replay import canonical_order
from tests.helpers.small import patchable, small_model, transformer

HEADS = [f"Resid Start->A0.{head}.{letter}" for head in (0, 1) for letter in "QKV"]
IN_ORDER = [
    *(f"{source}->Resid End" for source in ("Resid Start", "A0.0", "A0.1", "MLP 0")),
    *(f"{source}->MLP 0" for source in ("Resid Start", "A0.0", "A0.1")),
    *HEADS,
]


@pytest.fixture
def model() -> PatchableModel:
    return small_model(n_layers=1, n_heads=2)


def test_the_order_by_hand(model: PatchableModel) -> None:
    assert [edge.name for edge in canonical_edges(model)] == IN_ORDER
    assert [source.name for source in sources(model)] == ["Resid Start", "A0.0", "A0.1", "MLP 0"]


def test_later_positions_stand_first() -> None:
    positional = patchable(transformer(), seq_len=3)
    edges = canonical_edges(positional)
    assert edges == canonical_order(positional) and set(edges) == positional.edges
    assert [edge.seq_idx for edge in edges if edge.dest.name == "A1.3.V"][:3:2] == [2, 2]
    ends = [edge.seq_idx or 0 for edge in edges if edge.dest.name == "Resid End"]
    assert ends == sorted(ends, reverse=True) and set(ends) == {0, 1, 2}


def test_nodes_by_hand(model: PatchableModel) -> None:
    nodes = {node.name: node for node in (*model.srcs, *model.dests)}
    kinds = {"Resid Start": "input", "A0.1": "head", "MLP 0": "mlp", "A0.0.K": "head"}
    assert {name: kind(nodes[name]) for name in kinds} == kinds and kind(nodes["Resid End"]) == "output"
    assert {block(node) for node in nodes.values()} == {0}
    assert (head(nodes["A0.1"]), head(nodes["A0.1.V"]), head(nodes["MLP 0"])) == ((0, 1), (0, 1), None)
    assert [slot(nodes[f"A0.0.{letter}"]) for letter in "QKV"] == ["q", "k", "v"]  # type: ignore[arg-type]


def test_one_input_for_all_three_of_a_head() -> None:
    model = patchable(transformer(n_layers=1, separate_qkv=False), separate_qkv=False)
    dests = [dest for dest in model.dests if dest.head_idx is not None]
    assert {slot(dest) for dest in dests} == {"attn"} and len(dests) == 4


def test_edges_are_found_by_name_and_position(model: PatchableModel) -> None:
    assert find_edge(model, "A0.1->MLP 0").name == "A0.1->MLP 0"
    positional = patchable(transformer(), seq_len=3)
    edge = find_edge(positional, "A0.1->MLP 1", 2)
    assert (edge.name, edge.seq_idx) == ("A0.1->MLP 1", 2)


def test_any_permutation_is_an_order(model: PatchableModel) -> None:
    turned = canonical_edges(model)[::-1]
    assert check_order(model, turned) == turned
    assert check_order(model, iter(turned)) == turned  # type: ignore[arg-type]
