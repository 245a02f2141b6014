"""Search for a circuit of a wanted size: find the threshold that keeps so many edges.

A search at one threshold measures the effect of every edge, and most effects change little with the
threshold. So they tell about how many edges a search at another threshold would keep, and few searches
are needed. The last step removes the smallest effects of a search that kept too many: the circuit is
what that search kept with an effect of at least the reported threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pahq_plugin.results.decision import Decision

SEARCHES = 3
"""Searches at most, as long as one of them keeps enough edges."""

MARGIN = 1.05
"""Searches after the first aim at this many times the wanted edges, since too many can be cut."""

CLOSE = 1.2
"""A search that keeps at most this many times the wanted edges is the last one."""

LEAST = 1e-12
"""The smallest threshold that is tried."""

STEP = 1e-3
"""Factor of the next threshold if too few edges had an effect above 0."""


@dataclass(frozen=True)
class Sized:
    """A circuit of a wanted size.

    Attributes:
        decisions: in the order taken; an edge is kept if its effect is at least ``threshold``.
        threshold: the effect of the last edge that is kept.
        searched: thresholds of the searches, in turn.
        chosen: the one whose decisions these are.
    """

    decisions: list[Decision]
    threshold: float
    searched: list[float]
    chosen: float


def sized(search: Callable[[float], Sequence[Decision]], n_edges: int, threshold: float) -> Sized:
    """Search until a search keeps at least ``n_edges`` edges, and not many more; cut to that size.

    Edges whose effects tie with the last one are kept. There are fewer edges if not so many have an
    effect above 0.

    Args:
        search: takes all decisions at a threshold.
        n_edges: wanted size of the circuit.
        threshold: of the first search.
    """
    found: dict[float, Sequence[Decision]] = {}
    while True:
        found[threshold] = decisions = search(threshold)
        enough = {at: kept for at, kept in sizes(found).items() if kept >= n_edges}
        if enough and (min(enough.values()) <= CLOSE * n_edges or len(found) >= SEARCHES):
            break
        following = _next(decisions, n_edges, found)
        if following is None:
            break
        threshold = following
    chosen = max(enough) if enough else min(found)
    least = _least(found[chosen], n_edges) or chosen
    cut = [replace(decision, kept=decision.effect >= least) for decision in found[chosen]]
    return Sized(cut, least, list(found), chosen)


def sizes(found: dict[float, Sequence[Decision]]) -> dict[float, int]:
    """Return how many edges each search kept, by threshold."""
    return {at: sum(decision.kept for decision in decisions) for at, decisions in found.items()}


def _next(
    decisions: Sequence[Decision], n_edges: int, found: dict[float, Sequence[Decision]]
) -> float | None:
    """Return the next threshold; ``None`` if none remains that would keep more edges."""
    effects = sorted((decision.effect for decision in decisions), reverse=True)
    wanted = min(len(effects), math.ceil(MARGIN * n_edges))
    threshold = effects[wanted - 1] if wanted else math.inf
    counts = sizes(found)
    above = [at for at, kept in counts.items() if kept < n_edges]
    below = [at for at, kept in counts.items() if kept >= n_edges]
    if above and threshold <= 0:
        threshold = STEP * min(above)
    elif above and threshold >= min(above):
        threshold = min(above) / 2
    if below and threshold <= max(below):
        return math.sqrt(max(below) * min(above)) if above else 2 * max(below)
    if above and min(above) <= LEAST:
        return None
    return max(threshold, LEAST)


def _least(decisions: Sequence[Decision], n_edges: int) -> float | None:
    """Return the effect of the last of the ``n_edges`` largest among the kept edges, if there are any;
    for an empty circuit, more than the largest."""
    kept = sorted((decision.effect for decision in decisions if decision.kept), reverse=True)
    if not kept:
        return None
    return kept[min(n_edges, len(kept)) - 1] if n_edges else math.nextafter(kept[0], math.inf)
