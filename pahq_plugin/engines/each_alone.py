"""The effect of each edge alone, on any engine: in passes of its own, or as a candidate that is kept."""

from __future__ import annotations

from collections.abc import Sequence

from pahq_plugin.engines.incremental.alone import AloneEngine
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.host import Edge


def in_turn(engine: Engine, edges: Sequence[Edge]) -> list[Edge]:
    """Return edges in the order in which `alone` measures them."""
    return engine.in_turn(edges) if isinstance(engine, AloneEngine) else list(edges)


def alone(engine: Engine, edges: Sequence[Edge]) -> list[float]:
    """Measure in FP32 the effects of the first one or more edges, each patched alone.

    Args:
        engine: an engine from which nothing has been removed.
        edges: in the order of `in_turn`, at least one.

    Raises:
        MetricError: a loss is not finite; the message names the edge.
    """
    if isinstance(engine, AloneEngine):
        return engine.alone(edges)
    return kept(engine, edges, exact=True)


def kept(engine: Engine, edges: Sequence[Edge], *, exact: bool) -> list[float]:
    """Measure the effects of the first one or more edges as candidates that are all kept, so that each
    is patched alone; in FP32 if ``exact``, else as the engine screens."""
    some = edges[: engine.lookahead]
    return engine.effects(some, [True] * len(some), exact=exact)
