"""How inputs change on the rows of a pass: which edges change anything, and what the inputs lose.

The changes of all inputs on all rows are one product per block of sources: which sources are gone on
which row, times their (now - ablated) outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pahq_plugin.engines.incremental.cones import Plans
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place
from pahq_plugin.engines.incremental.positions import Bools, Positions
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.host import Edge


@dataclass(frozen=True)
class Shift:
    """A change of one input, ``[batch, pos, d_model]``, at some positions."""

    positions: Positions
    delta: Tensor


@dataclass(frozen=True)
class Start:
    """A changed input.

    Attributes:
        positions: positions at which it changes.
        first: number of rows before those of ``delta``.
        delta: the change on the next rows, ``[candidate, batch, pos, d_model]``.
        before: the change on each of the first rows, ``[batch, pos, d_model]``; ``None`` for none.
        after: the same for each of the last rows.
    """

    positions: Positions
    first: int
    delta: Tensor
    before: Tensor | None
    after: Tensor | None

    def on_row(self, row: int) -> Tensor | None:
        """Return the change on one row."""
        if row < self.first:
            return self.before
        at = row - self.first
        return self.delta[at] if at < len(self.delta) else self.after

    def on(self, rows: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield the terms that change the input of some rows, each with the rows it applies to."""
        last = self.first + len(self.delta)
        begin, end = max(rows.start, self.first), min(rows.stop, last)
        if self.before is not None and rows.start < self.first:
            yield slice(0, min(self.first, rows.stop) - rows.start), self.before[None]
        if begin < end:
            yield (
                slice(begin - rows.start, end - rows.start),
                self.delta[begin - self.first : end - self.first],
            )
        if self.after is not None and rows.stop > last:
            yield slice(max(last, rows.start) - rows.start, rows.stop - rows.start), self.after[None]


def changing_edges(
    candidates: Sequence[Edge], graph: KeptGraph, plans: Plans, state: BatchState
) -> list[bool]:
    """Return for each candidate into one stage whether its removal changes an input, where that is
    needed, on one batch's prompts."""
    changing = [False] * len(candidates)
    for place, members in plans.by_place(candidates).items():
        if not graph.is_needed(place):
            continue
        where = state.differences.changing(graph.stages[place[0]].n_sources)
        where = where & graph.needs(place[0])[place[1], place[2]]
        for i in members:
            edge = candidates[i]
            at = where[edge.src.src_idx]
            changing[i] = bool(at[edge.seq_idx] if graph.positional else at.any())
    return changing


def starts_without(
    candidates: Sequence[Edge],
    gone: Bools,
    graph: KeptGraph,
    plans: Plans,
    state: BatchState,
    shifts: Mapping[Place, Shift] | None = None,
) -> dict[Place, Start]:
    """Compute how the inputs change on each row, on one batch's prompts.

    Args:
        candidates: edges into one stage.
        gone: which of them are removed on each row, ``[row, candidate]``.
        graph: the kept edges.
        plans: cones of that graph.
        state: the present state.
        shifts: what changes on every row.
    """
    shifts = shifts or {}
    starts = {
        place: Start(shift.positions, len(gone), shift.delta[None][:0], shift.delta, None)
        for place, shift in shifts.items()
    }
    by_positions: dict[Positions, list[tuple[Place, slice, Bools]]] = {}
    for place, members in plans.by_place(candidates).items():
        positions = _positions(place, [candidates[i] for i in members], graph, plans)
        if len(positions) > 0 and gone[:, members].any():
            rows = _distinct(gone[:, members])
            edges = [candidates[i] for i in members]
            which = _sources(edges, gone[rows][:, members], graph)
            by_positions.setdefault(positions, []).append((place, rows, which))
    for positions, parts in by_positions.items():
        sources = np.concatenate([which for _, _, which in parts])
        deltas = state.differences.lost(sources, positions).split([len(which) for _, _, which in parts])
        for (place, rows, _), delta in zip(parts, deltas, strict=True):
            before = shifts[place].delta if place in shifts else None
            delta = delta if before is None else delta.add_(before)
            starts[place] = Start(positions, rows.start, delta, before, delta[-1])
    return starts


def _positions(place: Place, edges: Sequence[Edge], graph: KeptGraph, plans: Plans) -> Positions:
    """Return where removing edges into one destination changes its input, as far as that is needed."""
    needs = graph.needs(place[0])[place[1], place[2]]
    return graph.sets.of(plans.touched(edges) & needs)


def _distinct(gone: Bools) -> slice:
    """Return the rows between those in front in which nothing is gone, and those behind that equal the
    last of them."""
    first = int(gone.any(axis=1).argmax())
    same = (gone == gone[-1]).all(axis=1)
    last = len(gone) - 1 - int((~same[::-1]).argmax()) if not same.all() else -1
    return slice(first, max(first, last + 1) + 1)


def _sources(edges: Sequence[Edge], gone: Bools, graph: KeptGraph) -> Bools:
    """Return which sources are gone on each row, ``[row, pos or 1, source]``, given which ``edges`` into
    one destination are, ``[row, edge]``."""
    n_sources = graph.stages[graph.place(edges[0])[0]].n_sources
    which = np.zeros((len(gone), graph.shape.length if graph.positional else 1, n_sources), dtype=bool)
    for i, edge in enumerate(edges):
        which[:, edge.seq_idx or 0, edge.src.src_idx] |= gone[:, i]
    return which
