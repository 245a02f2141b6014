"""Candidates of one pass: what each takes from its destination's input, and the rows that show it.

1. Each candidate alone takes (now - ablated) of its source from its destination's input (`Single`).
2. A candidate that takes nothing in any batch has no effect and needs no row (`rows_of`).
3. On the row of a candidate all that is predicted to go before it has gone, and itself (`starts_of`).
4. From the rows' losses follow the effects, and which row is the state after a removal (`Group`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from pahq_plugin.engine.rows import Start
from pahq_plugin.graph import Place
from pahq_plugin.host import Edge
from pahq_plugin.positions import Positions


@dataclass(frozen=True)
class Single:
    """What candidates into one destination take from its input, each alone.

    Attributes:
        members: their indices in the group.
        positions: positions at which they count.
        taken: (now - ablated) source outputs, ``[candidate, batch, pos, d_model]``; `starts_of` uses
            this memory for the running sum.
    """

    members: list[int]
    positions: Positions
    taken: Tensor


@dataclass(frozen=True)
class Group:
    """Candidates into destinations of one stage, and the rows that show their effects.

    Attributes:
        candidates: edges, in the order of the search.
        predicted_kept: which of them are expected to be kept.
        row_of: the row without each of them; ``None`` where removing it changes nothing.
    """

    candidates: list[Edge]
    predicted_kept: list[bool]
    row_of: list[int | None]

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def n_rows(self) -> int:
        """Rows that are needed."""
        return sum(row is not None for row in self.row_of)

    def effects(self, losses: Sequence[float], before: float) -> list[float]:
        """Each row's loss minus that of the state before its candidate."""
        effects = []
        for row, is_kept in zip(self.row_of, self.predicted_kept, strict=True):
            effects.append(0.0 if row is None else losses[row] - before)
            if row is not None and not is_kept:
                before = losses[row]
        return effects

    def is_inert(self, edges: Sequence[Edge]) -> bool:
        """Whether ``edges`` are candidates whose removal changes nothing."""
        rows = dict(zip(self.candidates, self.row_of, strict=True))
        return all(edge in rows and rows[edge] is None for edge in edges)

    def row_without(self, edges: Sequence[Edge]) -> int | None:
        """The row in which exactly those of ``edges`` that change anything are gone; ``None`` if
        there is none."""
        wanted = set(edges)
        live = [i for i, row in enumerate(self.row_of) if row is not None]
        ours = [i for i in live if self.candidates[i] in wanted]
        if not ours or not wanted <= set(self.candidates):
            return None
        gone = [i for i in live if i < ours[-1] and not self.predicted_kept[i]]
        return self.row_of[ours[-1]] if gone == ours[:-1] else None


def rows_of(n_candidates: int, singles: Sequence[Mapping[Place, Single]]) -> list[int | None]:
    """A row for each candidate that changes anything in any batch."""
    changes = [False] * n_candidates
    for single in (single for batch in singles for single in batch.values()):
        changing = single.taken.flatten(1).any(dim=1).tolist()
        for i, is_changing in zip(single.members, changing, strict=True):
            changes[i] |= is_changing
    rows = count()
    return [next(rows) if change else None for change in changes]


def starts_of(singles: Mapping[Place, Single], group: Group, spare: int) -> dict[Place, Start]:
    """How the inputs change on each row: minus all that has gone until there.

    Args:
        singles: what each candidate alone takes; overwritten.
        group: the candidates and their rows.
        spare: rows in front in which nothing changes.
    """
    starts = {}
    for place, single in singles.items():
        live = [i for i, member in enumerate(single.members) if group.row_of[member] is not None]
        if live:
            first = group.row_of[single.members[live[0]]]
            assert first is not None
            delta, after = _running_sum(single, live, group)
            starts[place] = Start(single.positions, first + spare, delta, after)
    return starts


def _running_sum(single: Single, live: Sequence[int], group: Group) -> tuple[Tensor, Tensor | None]:
    """The change of one destination's input on the rows of its candidates, ``[candidate, batch, pos,
    d_model]``, made in the memory of what each takes; and on the rows after these.

    Args:
        single: what each candidate alone takes.
        live: those of its candidates that have a row.
        group: all candidates.
    """
    gone: Tensor | None = None
    for i in live:
        row = single.taken[i]
        row.neg_() if gone is None else torch.sub(gone, row, out=row)
        gone = gone if group.predicted_kept[single.members[i]] else row
    return single.taken if len(live) == len(single.members) else single.taken[live], gone
