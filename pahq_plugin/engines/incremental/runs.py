"""Rows without any sets of candidates, and without a tensor for each candidate.

In `passes` each candidate takes a tensor of its own from its destination's input. Where few rows stand
for many candidates, the changes of the inputs on all rows are one product per layer instead: which
sources are gone on which row, times their (now - ablated) outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.cones import Plans
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place
from pahq_plugin.engines.incremental.positions import Bools, Positions
from pahq_plugin.engines.incremental.rows import Start
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.host import Edge


class Removals:
    """Candidates into destinations of one stage, and those removed on each row.

    Args:
        candidates: edges.
        changing: which of them change anything when removed.
        gone: which of them are removed on each row, ``[row, candidate]``.

    Attributes:
        n_rows: number of different rows that differ from the present state.
    """

    def __init__(self, candidates: Sequence[Edge], changing: Sequence[bool], gone: Bools) -> None:
        self.candidates = list(candidates)
        self._at = {edge: i for i, edge in enumerate(candidates)}
        self._changing = np.array(changing, dtype=bool)
        self._rows: dict[bytes, int] = {}
        self._number: list[int | None] = []
        for row in gone & self._changing:
            known = self._rows.setdefault(row.tobytes(), len(self._rows)) if row.any() else None
            self._number.append(known)
        self.n_rows = len(self._rows)

    @property
    def gone(self) -> Bools:
        """What is removed on the rows that are run, ``[row, candidate]``."""
        return np.array([np.frombuffer(row, dtype=bool) for row in self._rows])

    def row(self, number: int) -> int | None:
        """Return which of the rows that are run stands for a row asked for; ``None`` for the present
        state."""
        return self._number[number]

    def is_inert(self, edges: Sequence[Edge]) -> bool:
        """Return whether all ``edges`` are candidates whose removal changes nothing."""
        return all(edge in self._at and not self._changing[self._at[edge]] for edge in edges)

    def row_without(self, edges: Sequence[Edge]) -> int | None:
        """Return the row in which, of all that change anything, exactly ``edges`` are removed; ``None``
        if there is no such row."""
        gone = np.zeros(len(self.candidates), dtype=bool)
        for edge in edges:
            if edge not in self._at:
                return None
            gone[self._at[edge]] = True
        return self._rows.get((gone & self._changing).tobytes())


def starts_without(
    removals: Removals, graph: KeptGraph, plans: Plans, state: BatchState
) -> dict[Place, Start]:
    """Compute how the inputs change on each row, on one batch's prompts."""
    gone = removals.gone
    by_positions: dict[Positions, list[tuple[Place, slice, Bools]]] = {}
    for place, members in plans.by_place(removals.candidates).items():
        needs = graph.needs(place[0])[place[1], place[2]]
        positions = graph.sets.of(plans.touched(removals.candidates[i] for i in members) & needs)
        if len(positions) > 0 and gone[:, members].any():
            rows = _distinct(gone[:, members])
            edges = [removals.candidates[i] for i in members]
            which = _sources(edges, gone[rows][:, members], graph)
            by_positions.setdefault(positions, []).append((place, rows, which))
    starts: dict[Place, Start] = {}
    for positions, parts in by_positions.items():
        sources = torch.from_numpy(np.concatenate([which for _, _, which in parts]))
        deltas = _lost(state, sources, positions).split([len(which) for _, _, which in parts])
        for (place, rows, _), delta in zip(parts, deltas, strict=True):
            starts[place] = Start(positions, rows.start, delta, None, delta[-1])
    return starts


def _lost(state: BatchState, gone: Tensor, positions: Positions) -> Tensor:
    """Compute what inputs lose when sources are gone: minus the sum of (now - ablated) outputs.

    Args:
        state: the present state.
        gone: whether each source is gone on each row, ``[row, all pos or 1, source]`` of bool.
        positions: positions of the result.

    Returns:
        ``[row, batch, pos, d_model]``.
    """
    like = state.now.embedding
    shape = (len(gone), len(like), len(positions), like.shape[-1])
    total = like.new_zeros(shape, dtype=state.model.cfg.dtype)
    used = gone.any(dim=1).any(dim=0).nonzero()[:, 0].tolist()
    gone = gone[:, positions.array] if gone.shape[1] > 1 else gone
    for members in state.by_stage(used).values():
        columns = [used[i] for i in members]
        taken = state.differences(columns, positions)  # [source, batch, pos, d_model]
        weights = gone[..., columns].to(total)
        if weights.shape[1] == 1:
            total -= torch.tensordot(weights[:, 0], taken, dims=1)
        else:
            total -= torch.einsum("rps,sbpd->rbpd", weights, taken)
    return total


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
    which = np.zeros(
        (len(gone), graph.shape.length if graph.positional else 1, graph.n_sources), dtype=bool
    )
    for i, edge in enumerate(edges):
        which[:, edge.seq_idx or 0, edge.src.src_idx] |= gone[:, i]
    return which
