"""The candidates of one pass, and the rows that show their effects.

1. A candidate that takes nothing from its destination's input has no effect and needs no row.
2. The row of a candidate is without it and every candidate before it that is predicted to be removed.
3. The losses of the rows give the effects, and a row is the state after a removal (`Group`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from pahq_plugin.engines.incremental.kept_graph import Place
from pahq_plugin.engines.incremental.positions import Bools
from pahq_plugin.engines.incremental.rows import Rows
from pahq_plugin.engines.incremental.starts import Shift, Start
from pahq_plugin.host import Edge


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

    def gone(self, spare: int) -> Bools:
        """Return which candidates are removed on each row, ``[row, candidate]``; on none of the first
        ``spare`` rows is any."""
        gone = np.zeros((spare + self.n_rows, len(self)), dtype=bool)
        before = np.zeros(len(self), dtype=bool)
        for i, row in enumerate(self.row_of):
            if row is not None:
                gone[spare + row] = before
                gone[spare + row, i] = True
            before[i] = self._changing[i] and not self.predicted_kept[i]
        return gone

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
