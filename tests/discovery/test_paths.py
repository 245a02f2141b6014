"""Edges on paths from input to output, against all paths of a small graph written out."""

from __future__ import annotations

import random

import pytest

from pahq_plugin.discovery.paths import on_paths
from pahq_plugin.host import Edge
from pahq_plugin.labels import ends
from tests.helpers.searches import small_edges


def all_paths(kept: set[Edge], node: str = "Resid Start") -> list[list[Edge]]:
    """Every path over kept edges from a node to the output."""
    if node == "Resid End":
        return [[]]
    onward = [edge for edge in kept if ends(edge.name).source == node]
    return [[edge, *path] for edge in onward for path in all_paths(kept, ends(edge.name).destination)]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_edges_of_all_paths(seed: int, share: float) -> None:
    edges = sorted(small_edges().edges, key=lambda edge: edge.name)
    kept = set(random.Random(seed).sample(edges, round(share * len(edges))))
    assert on_paths(kept, edges) == {edge for path in all_paths(kept) for edge in path}


def test_nothing_without_the_input_or_the_output() -> None:
    edges = small_edges().edges
    for missing in ("Resid Start->", "->Resid End"):
        assert on_paths({edge for edge in edges if missing not in edge.name}, edges) == set()
    assert on_paths(edges, edges) == edges
