"""Which parts are high for an edge, without a backend."""

from __future__ import annotations

import pytest

from pahq_plugin.choices import POLICIES
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.policy import EVERYTHING, NOTHING, HighParts, high_parts, part_of
from tests.helpers.small import patchable, small_model, transformer

MODEL = small_model()


def test_parts_are_joined() -> None:
    first = HighParts(heads=frozenset({(0, 1)}), mlps=frozenset({2}))
    second = HighParts(heads=frozenset({(0, 3)}))
    assert first | second == HighParts(frozenset({(0, 1), (0, 3)}), frozenset({2}))
    assert first | NOTHING == first
    assert (first | EVERYTHING).everything and not (first | second).everything


def test_heads_of_a_layer_ascend() -> None:
    parts = HighParts(heads=frozenset({(1, 3), (0, 2), (1, 0), (1, 2)}))
    assert parts.heads_of(1) == [0, 2, 3]
    assert parts.heads_of(0) == [2]
    assert parts.heads_of(2) == []


def test_every_node_has_its_part() -> None:
    for node in MODEL.nodes:
        words = node.name.replace(".", " ").split()
        parts = part_of(node)
        if words[0] == "MLP":
            assert parts == HighParts(mlps=frozenset({int(words[1])}))
        elif words[0].startswith("A"):
            assert parts == HighParts(heads=frozenset({(int(words[0][1:]), int(words[1]))}))
        else:
            assert parts == HighParts(unembed=node.name == "Resid End")


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_follow_from_source_and_destination(policy: str) -> None:
    for edge in canonical_edges(MODEL):
        expected = {
            "investigated_head": part_of(edge.dest),
            "investigated_path": part_of(edge.dest) | part_of(edge.src),
            "uniform": NOTHING,
            "full": EVERYTHING,
            "hybrid": part_of(edge.dest),
        }[policy]
        assert high_parts(policy, edge) == expected  # type: ignore[arg-type]


def test_edges_of_positions_count_as_their_head() -> None:
    model = patchable(transformer(n_layers=1, attn_only=True), seq_len=3)
    edge = model.edge_name_dict[2]["Resid Start->A0.1.V"]
    assert high_parts("investigated_head", edge) == HighParts(heads=frozenset({(0, 1)}))
