"""Edges on paths from input to output, against all paths of a small graph written out."""

from __future__ import annotations

import random

import pytest

from pahq_plugin.discovery.paths import on_paths
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge
from pahq_plugin.labels import ends
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader


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


def test_scores_of_edges_off_all_paths_become_0() -> None:
    asked = {"method": "eap-ig", "n_edges": 8}
    whole, cut = (discover(small_edges(), loader(), **asked, prune=prune) for prune in (False, True))
    left = on_paths(whole.circuit, whole.model.edges)
    assert {edge.name for edge in cut.circuit} == {edge.name for edge in left}
    assert cut.settings["off_paths"] == 8 - len(left) > 0
    assert sum(d.effect != 0 and not d.kept for d in cut.decisions) == len(whole.decisions) - 8
    with pytest.raises(ConfigError, match="prune"):
        discover(small_edges(), loader(), method="acdc", prune=True)


def test_nothing_without_the_input_or_the_output() -> None:
    edges = small_edges().edges
    for missing in ("Resid Start->", "->Resid End"):
        assert on_paths({edge for edge in edges if missing not in edge.name}, edges) == set()
    assert on_paths(edges, edges) == edges
