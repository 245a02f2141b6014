"""The candidates of one pass: what each takes from its destination's input, and the rows that show it.

1. Each candidate alone takes (now - ablated) of its source from its destination's input (`Single`).
2. A candidate that takes nothing in any batch has no effect and needs no row (`which_change`).
3. The row of a candidate is without it and every candidate before it that is predicted to be removed
   (`starts_of`).
4. The losses of the rows give the effects, and a row is the state after a removal (`Group`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.cones import Plans
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place
from pahq_plugin.engines.incremental.positions import Positions
from pahq_plugin.engines.incremental.rows import Rows, Shift, Start
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.host import Edge


@dataclass(frozen=True)
class Single:
    """What each candidate into one destination, alone, takes from its input.

    Attributes:
        members: indices of the candidates in the group.
        positions: positions at which they matter.
        taken: (now - ablated) source outputs, ``[candidate, batch, pos, d_model]``; `starts_of` reuses
            this memory for the running sum.
    """

    members: list[int]
    positions: Positions
    taken: Tensor


class Removed(Protocol):
    """What a pass knows of the edges that are removed on its rows."""

    def is_inert(self, edges: Sequence[Edge]) -> bool:
        """Return whether all ``edges`` are candidates whose removal changes nothing."""
        ...

    def row_without(self, edges: Sequence[Edge]) -> int | None:
        """Return the row in which, of all that change anything, exactly ``edges`` are removed; ``None``
        if there is no such row."""
        ...


class Group:
    """Candidates into destinations of one stage, and the rows that show their effects.

    Args:
        candidates: edges, in the order of the search.
        predicted_kept: which of them are expected to be kept.
        changing: which of them change anything when removed.
        wanted: which effects are wanted; all by default.

    Attributes:
        row_of: the row without each candidate; ``None`` for those without a row.
        n_rows: number of rows.
    """

    def __init__(
        self,
        candidates: Sequence[Edge],
        predicted_kept: Sequence[bool],
        changing: Sequence[bool],
        wanted: Sequence[bool] | None = None,
    ) -> None:
        self.candidates, self.predicted_kept = list(candidates), list(predicted_kept)
        self._changing = list(changing)
        shown = self._shown([True] * len(candidates) if wanted is None else wanted)
        self.n_rows = sum(shown)
        rows = count()
        self.row_of = [next(rows) if is_shown else None for is_shown in shown]

    def _shown(self, wanted: Sequence[bool]) -> list[bool]:
        """Return which candidates need a row: each wanted one, the last one removed before it, and the
        last one removed of all, since its row is the state after the group."""
        shown, last_gone = [False] * len(self), None
        for i, changes in enumerate(self._changing):
            if changes and wanted[i]:
                shown[i] = True
                if last_gone is not None:
                    shown[last_gone] = True
            if changes and not self.predicted_kept[i]:
                last_gone = i
        if last_gone is not None:
            shown[last_gone] = True
        return shown

    def __len__(self) -> int:
        return len(self.candidates)

    def rows_before(self, member: int) -> int:
        """Return how many rows the candidates ahead of ``member`` have."""
        return sum(row is not None for row in self.row_of[:member])

    def effects(self, losses: Sequence[float], before: float) -> list[float | None]:
        """Compute each row's loss minus that of the state before its candidate; ``None`` where the rows
        do not show it."""
        effects: list[float | None] = []
        known: float | None = before
        for row, is_kept, changes in zip(self.row_of, self.predicted_kept, self._changing, strict=True):
            if not changes:
                effects.append(0.0)
                continue
            after = None if row is None else losses[row]
            effects.append(None if after is None or known is None else after - known)
            known = known if is_kept else after
        return effects

    def is_inert(self, edges: Sequence[Edge]) -> bool:
        """Return whether all ``edges`` are candidates whose removal changes nothing."""
        changes = dict(zip(self.candidates, self._changing, strict=True))
        return all(edge in changes and not changes[edge] for edge in edges)

    def row_without(self, edges: Sequence[Edge]) -> int | None:
        """Return the row in which, of all that change anything, exactly ``edges`` are removed; ``None``
        if there is no such row."""
        wanted = set(edges)
        changing = [i for i, changes in enumerate(self._changing) if changes]
        ours = [i for i in changing if self.candidates[i] in wanted]
        if not ours or not wanted <= set(self.candidates):
            return None
        gone = [i for i in changing if i < ours[-1] and not self.predicted_kept[i]]
        return self.row_of[ours[-1]] if gone == ours[:-1] else None

    def changes(self, member: int) -> bool:
        """Return whether removing a candidate changes anything."""
        return self._changing[member]


def singles_of(
    candidates: Sequence[Edge], graph: KeptGraph, plans: Plans, state: BatchState
) -> dict[Place, Single]:
    """Compute what each candidate alone takes from its destination's input, on one batch's prompts."""
    singles = {}
    for place, members in plans.by_place(candidates).items():
        edges = [candidates[i] for i in members]
        needs = graph.needs(place[0])[place[1], place[2]]
        positions = graph.sets.of(plans.touched(edges) & needs)
        if len(positions) == 0:
            continue
        taken = state.differences([edge.src.src_idx for edge in edges], positions)
        if graph.positional:
            at = torch.tensor([edge.seq_idx for edge in edges], device=taken.device)
            taken *= (at[:, None] == positions.index)[:, None, :, None]
        singles[place] = Single(members, positions, taken)
    return singles


def which_change(n_candidates: int, singles: Sequence[Mapping[Place, Single]]) -> list[bool]:
    """Return for each candidate whether it takes anything away, in any batch."""
    changes = [False] * n_candidates
    for single in (single for batch in singles for single in batch.values()):
        changing = single.taken.flatten(1).any(dim=1).tolist()
        for i, is_changing in zip(single.members, changing, strict=True):
            changes[i] |= is_changing
    return changes


def starts_of(
    singles: Mapping[Place, Single], group: Group, spare: int, shifts: Mapping[Place, Shift]
) -> dict[Place, Start]:
    """Compute how the inputs change on each row: minus everything that is removed there.

    Args:
        singles: what each candidate alone takes; overwritten.
        group: the candidates and their rows.
        spare: number of leading rows in which no candidate is removed.
        shifts: what changes on every row.
    """
    n_rows = group.n_rows + spare
    starts = {
        place: Start(shift.positions, n_rows, shift.delta[None][:0], shift.delta, None)
        for place, shift in shifts.items()
    }
    for place, single in singles.items():
        first = group.rows_before(single.members[0]) + spare
        gone = shifts[place].delta if place in shifts else None
        delta, after = _running_sum(single, group, gone)
        starts[place] = Start(single.positions, first, delta, gone, after)
    return starts


def _running_sum(single: Single, group: Group, gone: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Compute the change of one destination's input on the rows of its candidates, ``[candidate, batch,
    pos, d_model]``, in the memory of ``single.taken``; and on the rows after these."""
    rows = []
    for i, member in enumerate(single.members):
        if not group.changes(member):
            continue
        row = single.taken[i]
        row.neg_() if gone is None else torch.sub(gone, row, out=row)
        gone = gone if group.predicted_kept[member] else row
        if group.row_of[member] is not None:
            rows.append(i)
    return single.taken if len(rows) == len(single.members) else single.taken[rows], gone


@dataclass
class Waiting:
    """Removed edges that the present state still includes.

    Attributes:
        shifts: for each batch, the changes that their removal makes to their destinations' inputs.
        edges: the edges.
        loss: screened loss of the state without them.
    """

    shifts: list[dict[Place, Shift]]
    edges: list[Edge] = field(default_factory=list)
    loss: float = 0.0

    def clear(self) -> None:
        """Forget all waiting edges."""
        self.edges.clear()
        for shifts in self.shifts:
            shifts.clear()


@dataclass(frozen=True)
class Pass:
    """A pass, and what its rows stand for.

    Attributes:
        group: its candidates, and those that are removed on each row.
        starts: for each batch, the changed inputs of its rows.
        rows: for each batch, its rows in the model's own precision; empty for a screened pass.
        losses: losses of the candidates' rows.
        spare: number of rows in front of these.
    """

    group: Removed
    starts: Sequence[Mapping[Place, Start]]
    rows: Sequence[Rows]
    losses: Sequence[float]
    spare: int

    def commit(self, row: int) -> None:
        """Make the row of a candidate the present state."""
        for rows in self.rows:
            rows.commit(row + self.spare)

    def put_off(self, row: int, edges: Sequence[Edge], waiting: Waiting) -> None:
        """Add ``edges``, which are removed in a candidate's row, to the waiting ones."""
        waiting.edges += edges
        waiting.loss = self.losses[row]
        for shifts, starts in zip(waiting.shifts, self.starts, strict=True):
            for place, start in starts.items():
                shift = start.on_row(row + self.spare)
                if shift is not None:
                    shifts[place] = Shift(start.positions, shift.clone())
