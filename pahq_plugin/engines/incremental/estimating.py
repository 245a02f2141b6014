"""The incremental engine with estimates: derivatives along edges, and losses at the ends of runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import torch

from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.incremental.gradients import Backward, Point
from pahq_plugin.engines.incremental.passes import Pass
from pahq_plugin.engines.incremental.positions import Bools
from pahq_plugin.engines.incremental.rows import Rows
from pahq_plugin.engines.incremental.runs import Removals
from pahq_plugin.engines.protocol import Slopes
from pahq_plugin.errors import PahqError, one_line
from pahq_plugin.host import Edge

SAMPLES = 32
"""Probes of the loss's curvature are drawn until there are about this many, at least one per prompt."""

MOST_PROBES = 4
"""Probes per prompt at most."""

FEWEST = 64
"""Candidates of a stage from which estimates pay: a gradient costs as much as several rows."""

LEAST_PRODUCTS = 1e8
"""Multiplications of the mean row of a stage from which estimates pay. Cheaper rows cost less than what
makes them fewer: gradients, rows that change many destinations, and shorter passes."""


class EstimatingEngine(IncrementalEngine):
    """See the module's docstring and `pahq_plugin.engines.protocol.Estimator`."""

    gradients = 0
    _removals: Removals | None = None  # of the last call of `losses`
    _rows: Sequence[Rows] = ()  # of that call, by batch

    def objection_to_slopes(self) -> str | None:
        """See `Estimator.objection_to_slopes`."""
        if self._placement.moves:
            return "weights that do not stay in memory"
        output = len(self._graph.stages) - 1
        try:
            with torch.inference_mode():
                final = self._states[0].inputs(output, 0, (0,), self._graph.outputs)[0]
            with torch.inference_mode(False):
                found = self._readouts[0].derivatives(final[None].clone())
        except (PahqError, RuntimeError) as error:
            return f"a metric that cannot be differentiated ({one_line(error)})"
        return None if bool(found.isfinite().all()) else "a metric whose gradient is not finite"

    def of_one_stage(self, candidates: Sequence[Edge]) -> list[Edge]:
        """See `Estimator.of_one_stage`."""
        first = self._graph.place(candidates[0])[0]
        return list(takewhile(lambda edge: self._graph.place(edge)[0] == first, candidates))

    @torch.inference_mode()
    def changing(self, candidates: Sequence[Edge]) -> list[bool]:
        """See `Estimator.changing`."""
        self.catch_up()
        live = [edge for edge in candidates if self._graph.is_needed(self._graph.place(edge))]
        if not live or not self._plans.cone(live):
            return [False] * len(candidates)
        return self._changing(candidates)

    def pays(self, candidates: Sequence[Edge]) -> bool:
        """See `Estimator.pays`."""
        if len(candidates) < FEWEST:
            return False
        count = products = 0
        for members in self._plans.by_place(candidates).values():
            steps = self._plans.cone([candidates[i] for i in members])
            if steps:
                count += len(members)
                products += len(members) * self._plans.row_products(steps)
        return count >= FEWEST and products * self._world.size >= LEAST_PRODUCTS * count

    def fitting_rows(self, candidates: Sequence[Edge]) -> int:
        """See `Estimator.fitting_rows`."""
        steps = self._plans.cone(candidates)
        return self._batching.fitting_rows(steps) if steps else self._batching.cap.rows

    @torch.inference_mode()
    def losses(
        self, candidates: Sequence[Edge], changing: Sequence[bool], gone: Bools
    ) -> list[float] | None:
        """See `Estimator.losses`."""
        self._last, self._removals, self._rows = None, None, ()
        live = [edge for edge, changes in zip(candidates, changing, strict=True) if changes]
        steps = self._plans.cone(live) if live else []
        if not steps:  # they act where nothing is read
            changing = [False] * len(candidates)
        removals = Removals(candidates, changing, gone)
        rows: list[Rows] = []
        losses: list[float] = []
        try:
            if removals.n_rows:
                starts = self._starts(removals.candidates, removals.gone)
                rows, losses = self._run(steps, starts, removals.n_rows)
        except (RuntimeError, MemoryError) as error:
            self._make_room(error)
            return None
        self._last = Pass(removals, [], rows, losses, 0)
        self._removals, self._rows = removals, rows
        found = [removals.row(number) for number in range(len(gone))]
        return [self._present if row is None else losses[row] for row in found]

    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`; the rows of the last call of `losses` are freed."""
        super().remove(edges)
        self._removals, self._rows = None, ()

    @torch.inference_mode()
    def slopes(self, candidates: Sequence[Edge], row: int | None = None) -> Slopes:
        """See `Estimator.slopes`."""
        at = self._graph.place(candidates[0])[0]
        index = tuple(np.array([self._graph.index(edge)[1] for edge in candidates]).T)
        if row is not None:
            assert self._removals is not None
            row = self._removals.row(row)
        first, curved = np.zeros(len(candidates)), []
        for batch in range(len(self._states)):
            along = self._backward(batch, row, at).along_edges(at)
            self.gradients += len(along)
            found = along.double().cpu().numpy()[(slice(None), slice(None), *index)]
            share = self._weights[batch] / len(self._states)
            first += share * found[0].sum(axis=0)
            scale = (share / max(1, len(found) - 1)) ** 0.5
            curved.append(scale * found[1:].reshape(-1, len(candidates)))
        parts = self._world.collect((first, np.concatenate(curved)))
        first = np.sum([slopes for slopes, _ in parts], axis=0)
        return Slopes(first, np.concatenate([probes for _, probes in parts]).T)

    def _backward(self, batch: int, row: int | None, at: int) -> Backward:
        """Prepare a gradient at a row of the last pass, or gradient and probes at the present state."""
        state, readout = self._states[batch], self._readouts[batch]
        if row is not None:
            return Backward(state, readout, [Point(self._rows[batch], row)], None, self._budget.work)
        normals = None
        if readout.curved:
            prompts = len(state.batch.clean) * len(self._states)
            count = max(1, min(MOST_PROBES, SAMPLES // prompts))
            seed = at + 1000 * batch + 10**6 * self._world.rank
            normals = readout.normals(count, torch.Generator().manual_seed(seed))
        return Backward(state, readout, [Point()], normals, self._budget.work)
