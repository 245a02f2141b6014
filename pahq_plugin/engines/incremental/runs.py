"""Sets of candidates that are removed together, one set for each row of a pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pahq_plugin.engines.incremental.positions import Bools
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
