"""From scores to a circuit: ties, infinite scores, and the number of edges."""

from __future__ import annotations

import math

import pytest
from auto_circuit.types import PruneScores
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import desc_prune_scores, prune_scores_threshold

from pahq_plugin.discovery.scores import rank
from pahq_plugin.errors import MetricError
from tests.helpers.refused import refused
from tests.helpers.replay import canonical_order
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader


def assigned(model: PatchableModel, values: list[float]) -> PruneScores:
    """Scores of the edges in canonical order: ``values``, then 0."""
    scores = model.new_prune_scores()
    for edge, value in zip(canonical_order(model), values, strict=False):
        scores[edge.dest.module_name][edge.patch_idx] = value
    return scores


@pytest.mark.parametrize("n_edges", [0, 1, 2, 3, 4, 5, 6, 7, 46])
def test_ties_are_kept_as_run_circuits_does(n_edges: int) -> None:
    model = small_edges()
    scores = assigned(model, [3.0, -2.0, 2.0, 1.0, -1.0, 1.0])
    edges = canonical_order(model)
    assert len(edges) == 46
    decisions = rank(scores, edges, n_edges)
    least = prune_scores_threshold(desc_prune_scores(scores), n_edges)
    expected = {edge for edge in edges if abs(edge.prune_score(scores)) >= least}
    assert {d.edge for d in decisions if d.kept} == expected
    assert {d.edge for d in decisions} == set(edges) and len(decisions) == 46
    assert [abs(d.effect) for d in decisions] == sorted((abs(d.effect) for d in decisions), reverse=True)
    assert [d.edge for d in decisions][:6] == edges[:6]


def test_without_a_number_every_edge_with_a_score_is_kept() -> None:
    model = small_edges()
    decisions = rank(assigned(model, [0.0, 1e-30, -5.0]), canonical_order(model), None)
    assert {d.edge for d in decisions if d.kept} == set(canonical_order(model)[1:3])
    nothing = rank(model.new_prune_scores(), canonical_order(model), None)
    assert not any(d.kept for d in nothing)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.inf, 2.0, -math.inf, -3.0], [30.0, 2.0, -30.0, -3.0]),
        ([math.inf, 0.0], [10.0, 0.0]),
        ([math.inf] * 46, [10.0] * 46),
    ],
)
def test_infinite_scores_become_ten_times_the_largest(
    values: list[float], expected: list[float]
) -> None:
    model = small_edges()
    order = canonical_order(model)
    decisions = rank(assigned(model, values), order, None)
    got = {d.edge: d.effect for d in decisions}
    assert [got[edge] for edge in order][: len(expected)] == expected


@pytest.mark.parametrize("n_edges", [None, 0, 3])
def test_scores_that_are_no_numbers_are_refused(n_edges: int | None) -> None:
    model = small_edges()
    order = canonical_order(model)
    with refused(MetricError, order[2].name):
        rank(assigned(model, [1.0, 2.0, math.nan, math.inf]), order, n_edges)


@pytest.mark.parametrize("n_edges", [0, 1, 7, 46])
def test_n_edges_is_the_size_of_the_circuit(n_edges: int) -> None:
    result = discover(small_edges(), loader(), method="eap-ig", n_edges=n_edges)
    assert len(result.circuit) == n_edges
    assert result.settings["n_edges"] == n_edges
    magnitudes = [abs(d.effect) for d in result.decisions]
    assert magnitudes == sorted(magnitudes, reverse=True)
    assert [d.kept for d in result.decisions] == [i < n_edges for i in range(46)]
