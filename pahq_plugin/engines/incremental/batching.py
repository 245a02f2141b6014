"""Choose how many of the next candidates go through one pass.

They belong to one stage. There are as many as fit in memory and are likely to be used.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Sequence

import numpy as np
import torch

from pahq_plugin.engines.incremental.budget import Budget
from pahq_plugin.engines.incremental.cones import Plans
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Step
from pahq_plugin.errors import ModelError
from pahq_plugin.host import Edge
from pahq_plugin.system.memory import release_unused

LEAST_ROWS = 16


class Batching:
    """Chooses candidates, and learns from how many of the last ones were used.

    Args:
        graph: the kept edges.
        plans: cones, and how many of their rows fit.
        budget: bytes for rows.
    """

    def __init__(self, graph: KeptGraph, plans: Plans, budget: Budget) -> None:
        self._graph = graph
        self._plans = plans
        self._budget = budget
        self.most_rows = max(LEAST_ROWS, graph.n_sources)
        self.restart()

    def restart(self) -> None:
        """Forget how earlier candidates were used."""
        self._limit = self.most_rows
        self.cap = RowCap(self.most_rows)
        self._asked: list[Edge] | None = None

    def next(
        self, candidates: Sequence[Edge], waiting: Sequence[Edge], few: int, budget: int
    ) -> tuple[list[Edge], list[Step]]:
        """Choose the first candidates, which become rows of one pass.

        Args:
            candidates: in the order of the search, at least one.
            waiting: removed edges whose changes every row carries.
            few: destinations are added until this many candidates matter.
            budget: bytes for the rows.

        Returns:
            The candidates, and their cone: empty if none of them has an effect.
        """
        self._adapt(candidates)
        self._asked = None
        group, needed = self._first_of_a_stage(candidates, few)
        if not any(needed):
            return group, []
        group, steps = self._fitting(group, needed, waiting, budget)
        if steps:
            self._asked = group
        return group, steps

    def fitting_rows(self, steps: Sequence[Step]) -> int:
        """Return how many rows in the model's own precision fit in one pass over the cone ``steps``."""
        return min(self.cap.rows, self._plans.fitting_rows(steps, self._budget.rows))

    def _first_of_a_stage(self, candidates: Sequence[Edge], few: int) -> tuple[list[Edge], list[bool]]:
        """Take the candidates into the first one's destination and into the next destinations of its
        stage, until at least ``few`` matter; return them, and for each whether it matters at all."""
        place = self._graph.place(candidates[0])
        is_needed, seen = self._graph.is_needed(place), {place}
        needed: list[bool] = []
        for edge in candidates:
            before, place = place, self._graph.place(edge)
            if place != before:
                if place[0] != before[0] or place in seen or sum(needed) >= few:
                    break
                seen.add(place)
                is_needed = self._graph.is_needed(place)
            needed.append(is_needed)
        return list(candidates[: len(needed)]), needed

    def _fitting(
        self, group: list[Edge], needed: Sequence[bool], waiting: Sequence[Edge], budget: int
    ) -> tuple[list[Edge], list[Step]]:
        """Cut the group to as many candidates as are wanted and fit; return it and its cone."""
        counts, limit = np.cumsum(needed), min(self._limit, self.cap.rows)
        while True:
            group = group[: int(np.searchsorted(counts, limit, side="right"))]
            live = [edge for edge, is_needed in zip(group, needed, strict=False) if is_needed]
            steps = self._plans.cone([*live, *waiting])
            fit = self._plans.fitting_rows(steps, budget) if steps else limit
            if len(live) <= fit:
                return group, steps
            limit = fit

    def _adapt(self, candidates: Sequence[Edge]) -> None:
        """Allow more rows after a pass that was used completely, fewer after one that was cut short."""
        if self._asked is None:
            return
        if candidates[0] in self._asked:
            used = self._asked.index(candidates[0])
            self._limit = max(LEAST_ROWS, 2 * used)
        else:
            self._limit = min(self.most_rows, 2 * self._limit)


log = logging.getLogger(__name__)


GOOD_PASSES = 16
"""The cap doubles after this many successful passes, at first."""


class RowCap:
    """Caps the rows of an engine's passes after it has run out of memory.

    Args:
        most: rows of the largest possible pass.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._good, self._wanted = 0, GOOD_PASSES // 2
        self.rows = most

    def shrink(self, error: BaseException) -> None:
        """Halve the cap and free all memory that can be freed.

        Args:
            error: the error that ended a pass with that cap.

        Raises:
            ModelError: the smallest pass does not fit.
        """
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the pass
        if self.rows == 1:
            raise ModelError(
                "not enough memory for the smallest pass: one patched forward, or three if screened "
                "edges are decided again; pass a smaller batch_size, fewer prompts, or method='acdc'"
            ) from error
        self.rows //= 2
        self._good, self._wanted = 0, 2 * self._wanted
        log.warning("out of memory: passes of at most %d rows from now on", self.rows)
        gc.collect()
        release_unused()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def passed(self) -> None:
        """Count a successful pass; double the cap after enough of them."""
        if self.rows == self._most:
            return
        self._good += 1
        if self._good == self._wanted:
            self._good = 0
            self.rows = min(self._most, 2 * self.rows)
