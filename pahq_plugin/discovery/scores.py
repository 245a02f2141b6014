"""Turn scores of all edges into a circuit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from pahq_plugin.errors import MetricError
from pahq_plugin.host import Edge, PruneScores
from pahq_plugin.labels import edge_label
from pahq_plugin.results.decision import Decision

UNREMOVED = 10.0
"""A score that a host algorithm leaves infinite becomes this many times the largest finite score."""


def rank(scores: PruneScores, edges: Sequence[Edge], n_edges: int | None) -> list[Decision]:
    """Return decisions from scores, see `rank_values`.

    Raises:
        MetricError: a score is NaN.
    """
    return rank_values({edge: float(edge.prune_score(scores)) for edge in edges}, edges, n_edges)


def rank_values(
    values: dict[Edge, float],
    edges: Sequence[Edge],
    n_edges: int | None,
    inexact: Collection[Edge] = frozenset(),
) -> list[Decision]:
    """Return decisions from values, largest magnitude first, ties in the order of ``edges``.

    Keeps the top ``n_edges`` by magnitude and, as the host's ``run_circuits`` does, every edge that ties
    with the last of them; with ``None`` it keeps every edge with a non-zero value.

    Args:
        values: the score or effect of each edge.
        edges: all edges.
        n_edges: circuit size.
        inexact: edges whose values were measured in low precision.

    Raises:
        MetricError: a value is NaN.
    """
    finite = _finite(values)
    ranked = sorted(edges, key=lambda edge: -abs(finite[edge]))
    if n_edges is None:
        least = min((abs(v) for v in finite.values() if v != 0), default=float("inf"))
    else:
        least = abs(finite[ranked[n_edges - 1]]) if n_edges else float("inf")
    return [Decision(e, finite[e], abs(finite[e]) >= least, exact=e not in inexact) for e in ranked]


def _finite(values: dict[Edge, float]) -> dict[Edge, float]:
    """Replace infinite scores (the host's ACDC: never removed) by ten times the largest finite one."""
    unknown = next((edge for edge, value in values.items() if math.isnan(value)), None)
    if unknown is not None:
        raise MetricError(
            f"the score of edge {edge_label(unknown)} is not a number: the loss or its gradient is not "
            "finite on these prompts"
        )
    largest = max((abs(v) for v in values.values() if abs(v) != float("inf")), default=0.0)
    limit = UNREMOVED * (largest or 1.0)
    return {edge: max(-limit, min(limit, value)) for edge, value in values.items()}
