"""What a pass leaves behind for the removal of edges that it has shown.

A row of an exact pass can become the present state. A screened row cannot: taking its edges out of the
present state costs a pass in full precision. As long as the next candidates have destinations in the
same stage, which do not feed each other, that can wait: what the removed edges take from their
destinations' inputs is in every row of the next passes, and one pass then takes them all out together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pahq_plugin.engine.candidates import Group
from pahq_plugin.engine.rows import Rows, Shift, Start
from pahq_plugin.graph import Place
from pahq_plugin.host import Edge


@dataclass
class Waiting:
    """Removed edges that the present state still holds.

    Attributes:
        shifts: per batch what their removal changes of their destinations' inputs.
        edges: the edges.
        loss: screened loss of the state without them.
    """

    shifts: list[dict[Place, Shift]]
    edges: list[Edge] = field(default_factory=list)
    loss: float = 0.0

    def clear(self) -> None:
        """Nothing waits any more."""
        self.edges.clear()
        for shifts in self.shifts:
            shifts.clear()


@dataclass(frozen=True)
class Pass:
    """A pass and what its rows stand for.

    Attributes:
        group: its candidates.
        starts: per batch the changed inputs of its rows.
        rows: per batch its rows in the model's own precision; none of a screened pass.
        losses: of the rows of the candidates.
        spare: rows in front of these.
    """

    group: Group
    starts: Sequence[Mapping[Place, Start]]
    rows: Sequence[Rows]
    losses: Sequence[float]
    spare: int

    def commit(self, row: int) -> None:
        """Make the row of a candidate the present state."""
        for rows in self.rows:
            rows.commit(row + self.spare)

    def put_off(self, row: int, edges: Sequence[Edge], waiting: Waiting) -> None:
        """Let ``edges`` wait, too, which the row of a candidate shows removed."""
        waiting.edges += edges
        waiting.loss = self.losses[row]
        for shifts, starts in zip(waiting.shifts, self.starts, strict=True):
            for place, start in starts.items():
                shift = start.on_row(row + self.spare)
                if shift is not None:
                    shifts[place] = Shift(start.positions, shift.clone())
