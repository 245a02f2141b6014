"""Run ACDC with estimates: measure few edges alone, confirm the others together.

The candidates of a stage, whose destinations cannot influence each other, are decided in passes:

1. *Estimate* the effects of all of them from derivatives of the loss (`forecast`).
2. *Measure alone*, in FP32, each candidate whose estimate is near or above the threshold.
3. *Confirm together*. The candidates between two of these are removed in runs. One row shows the loss
   at the end of a run; others show it with only some members removed, so that of any two members the
   earlier one is removed on some row without the later one (`subsets`). If all losses have changed by
   the sums of the estimates, the run is confirmed and its members are removed; otherwise it is divided.
4. Decisions are taken in order, up to the first run that is not confirmed or the first candidate that is
   not decided as predicted. The next pass begins there.

Estimates therefore only choose what is measured together. No edge is kept except on its own FP32
effect. That none is removed wrongly is measured, not guaranteed: errors of several members may cancel on
every row. As a watch, a seeded sample of edges is always measured alone. If one of them has to be kept
although its estimate would have removed it with others, the decisions of its stage are withdrawn, and
each of its edges is measured.

Where measuring each candidate costs less (`Estimator.pays`), that is done, as in `acdc`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pahq_plugin.discovery.acdc import Progress, Snapshot, Sweep
from pahq_plugin.discovery.forecast import Floats, Forecast
from pahq_plugin.discovery.guard import AUDIT_EVERY, sample_of
from pahq_plugin.engines.protocol import Estimator
from pahq_plugin.errors import MetricError
from pahq_plugin.host import Edge
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Stats

Bools = NDArray[np.bool_]

NEAR = 0.5
"""A candidate is measured alone if its estimate and its doubt reach this share of the threshold."""

DOUBT = 0.5
"""Share of the unexplained change of a slope by which an estimate may be off."""

LARGEST_SUM = 1.0
"""A run ends before the sizes of its estimates add up to more than this many thresholds: an estimate is
off by some share of its size."""

CLOSE = 0.5
"""A run is confirmed if on each row the difference between the loss and its estimate, added to the
largest estimate of a member, stays below this share of the threshold."""

PARTS = 4
"""Number of runs that an unconfirmed run is divided into."""

MOST_ROWS = 64
"""Rows of a pass."""

FEW_ROWS = 16
"""Rows of the pass after one that was not used to its end."""

GROWTH = 4
"""Factor by which the rows of a pass may grow after one that was used to its end."""


@dataclass(frozen=True)
class Run:
    """Candidates ``first`` to ``last`` of a stage that are decided together, or a single one.

    Attributes:
        subsets: members that are removed on each row, ``[row, member]``, the last row without all.
    """

    first: int
    last: int
    subsets: Bools

    @property
    def is_single(self) -> bool:
        """Whether its effect is measured alone."""
        return self.first == self.last

    @property
    def members(self) -> slice:
        """Its candidates."""
        return slice(self.first, self.last + 1)


def subsets(changing: Sequence[bool]) -> Bools:
    """Return subsets of a run's members ``[row, member]``, and at the end all of them.

    Of any two members that change something, one subset holds the earlier one without the later one, as
    the state does when the earlier one is decided: a row for each binary digit of their numbers.
    """
    numbers = np.maximum(np.cumsum(changing) - 1, 0)  # of those that change something
    digits = [(numbers >> bit) & 1 == 0 for bit in range(int(numbers[-1]).bit_length())]
    return np.array([*digits, np.ones(len(numbers), dtype=bool)])


@dataclass
class _Stage:
    """What is left to decide of a stage.

    Attributes:
        begin: index of the stage's first decision.
        candidates: undecided edges, in order.
        changing: which of them change anything when removed.
        audited: which of them are measured alone in any case.
        forecast: of their effects.
        known: effects by candidate that replace those of the forecast.
        ends: candidates after which a run has to end.
        most_rows: of the next pass.
    """

    begin: int
    candidates: list[Edge]
    changing: list[bool]
    audited: Bools
    forecast: Forecast
    known: dict[int, float] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    most_rows: int = MOST_ROWS

    def take(self, kept: Sequence[bool]) -> None:
        """Drop the first candidates, which were decided so."""
        count = len(kept)
        self.forecast = self.forecast.behind(kept)
        self.audited = self.audited[count:]
        self.candidates, self.changing = self.candidates[count:], self.changing[count:]
        self.known = {i - count: effect for i, effect in self.known.items() if i >= count}
        self.ends = {i - count for i in self.ends if i >= count}

    def divide(self, run: Run) -> None:
        """Let a run be divided in the next pass."""
        size = run.last + 1 - run.first
        parts = min(PARTS, size)
        self.ends |= {run.first + size * part // parts - 1 for part in range(1, parts)}


@dataclass(frozen=True)
class _Plan:
    """What a pass measures.

    Attributes:
        effects: estimated effect of each candidate.
        near: which candidates may reach the threshold, as far as the estimates can be trusted.
        runs: the first candidates, in runs.
    """

    effects: Floats
    near: Bools
    runs: list[Run]

    @property
    def size(self) -> int:
        """Number of candidates in runs."""
        return self.runs[-1].last + 1

    def rows(self, kept: Bools) -> Bools:
        """Return which candidates are removed on each row, ``[row, candidate]``, if those that are
        ``kept`` stay."""
        gone, rows = np.zeros(self.size, dtype=bool), []
        for run in self.runs:
            for subset in run.subsets:
                row = gone.copy()
                row[run.members] = subset
                rows.append(row)
            gone[run.members] = ~kept[run.members]
        return np.array(rows)


class Cascade(Sweep):
    """A sweep with estimates.

    Args:
        engine: measures and estimates; no edge is removed yet.
        order: all edges, in the order in which they are tested.
        threshold: an edge is removed if and only if its effect is below this.
        seed: selects the edges that are always measured alone.
        progress: called after each step.
        start: snapshot to continue from.
        show: called with every snapshot, the last one after the last decision.
    """

    def __init__(
        self,
        engine: Estimator,
        order: Sequence[Edge],
        threshold: float,
        *,
        seed: int,
        progress: Progress | None = None,
        start: Snapshot | None = None,
        show: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self._estimator = engine
        self._audits = sample_of(order, seed, len(order) // AUDIT_EVERY)
        if start is not None:
            self._audits = {order[i] for i in start.audits}
        self._stage: _Stage | None = None
        self._by_rows = 0  # decisions up to here are taken on rows of their own
        self._estimated = self._measured = 0  # stages
        super().__init__(engine, order, threshold, progress=progress, start=start, show=show)

    def _step(self) -> None:
        """Take the decisions that one pass permits."""
        if len(self.decisions) < self._by_rows:
            super()._step()
        elif self._stage is None:
            self._begin_stage()
        else:
            self._decide(self._stage)

    # Stages ----------------------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        """Prepare the next stage."""
        at, engine = len(self.decisions), self._estimator
        candidates = engine.of_one_stage(self._order[at:])
        self._by_rows = at + len(candidates)
        if engine.pays(candidates) and not self._audits.issuperset(candidates):
            changing = engine.changing(candidates)
            forecast = self._forecast(candidates, changing)
            if forecast is not None:
                self._by_rows = at
                self._estimated += 1
                audited = np.array([edge in self._audits for edge in candidates])
                self._stage = _Stage(at, candidates, changing, audited, forecast)
        self._measured += self._stage is None

    def _forecast(self, candidates: Sequence[Edge], changing: Sequence[bool]) -> Forecast | None:
        """Forecast the effects of a stage's candidates, corrected by the slopes at the end of the path;
        ``None`` if the derivatives are not finite."""
        engine, threshold = self._estimator, self._threshold
        slopes = engine.slopes(candidates)
        if not slopes.finite:
            return None
        forecast = Forecast.of(slopes)
        kept = forecast.effects(threshold, {}) >= threshold
        try:
            if engine.losses(candidates, changing, ~kept[None]) is None:
                return forecast
        except MetricError:
            return None
        at_end = engine.slopes(candidates, 0)
        return forecast.bent(at_end.first, kept) if at_end.finite else None

    def _give_up(self) -> None:
        """Measure each edge that is left of the stage."""
        assert self._stage is not None
        self._by_rows = len(self.decisions) + len(self._stage.candidates)
        self._stage = None

    def _withdraw(self, stage: _Stage) -> None:
        """Withdraw the decisions of a stage; its edges are measured one by one when it begins again."""
        self._audits |= {decision.edge for decision in self.decisions[stage.begin :]}
        self._audits |= set(stage.candidates)
        self._go_back(stage.begin)

    # One pass --------------------------------------------------------------------------------------

    def _decide(self, stage: _Stage) -> None:
        """Run one pass over the next candidates and take the decisions that it permits."""
        plan = self._planned(stage, stage.most_rows)
        fit = self._estimator.fitting_rows(stage.candidates[: plan.size])
        if fit < stage.most_rows:
            plan = self._planned(stage, fit)
        rows = plan.rows(plan.effects >= self._threshold)
        try:
            losses = self._estimator.losses(
                stage.candidates[: plan.size], stage.changing[: plan.size], rows
            )
        except MetricError:  # perhaps of a row that rests on a wrong prediction
            self._give_up()
            return
        if losses is None:  # out of memory: a smaller pass comes next
            return
        decisions, used = self._walk(stage, plan, losses)
        missed = any(
            decision.kept and stage.audited[i] and not plan.near[i]
            for i, decision in enumerate(decisions)
        )
        self._record(decisions)
        stage.most_rows = min(GROWTH * stage.most_rows, MOST_ROWS) if used else FEW_ROWS
        stage.take([decision.kept for decision in decisions])
        if missed:
            self._withdraw(stage)
        elif not stage.candidates:
            self._stage = None

    def _planned(self, stage: _Stage, most_rows: int) -> _Plan:
        """Divide the next candidates into runs, at least one, of at most so many rows together."""
        effects, doubt = stage.forecast.effects(self._threshold, stage.known), stage.forecast.doubt
        near = effects + DOUBT * doubt >= NEAR * self._threshold
        alone = near | stage.audited
        curvature = stage.forecast.curvature
        sizes = np.abs(effects - curvature) + curvature + DOUBT * doubt  # the two may cancel
        runs: list[Run] = []
        first, n_rows = 0, 0
        while first < len(effects) and (not runs or n_rows < most_rows):
            run = self._run_from(stage, first, alone, sizes, most_rows)
            runs.append(run)
            first, n_rows = run.last + 1, n_rows + len(run.subsets)
        if n_rows > most_rows and len(runs) > 1:
            runs.pop()
        return _Plan(effects, near, runs)

    def _run_from(self, stage: _Stage, first: int, alone: Bools, sizes: Floats, most_rows: int) -> Run:
        """Return the run that begins with a candidate and takes at most so many rows."""
        last, total = first, sizes[first]
        end = min(len(sizes), first + 2 ** min(max(0, most_rows - 1), MOST_ROWS))
        while not alone[last] and last not in stage.ends and last + 1 < end:
            total += sizes[last + 1]
            if alone[last + 1] or total > LARGEST_SUM * self._threshold:
                break
            last += 1
        return Run(first, last, subsets(stage.changing[first : last + 1]))

    def _walk(self, stage: _Stage, plan: _Plan, losses: Sequence[float]) -> tuple[list[Decision], bool]:
        """Take decisions in order, as far as the losses of a pass permit; return them, and whether all
        runs were used."""
        before, rest = self._estimator.present_loss, iter(losses)
        assert before is not None
        decisions: list[Decision] = []
        used = True
        for run in plan.runs:
            changes = np.array([next(rest) for _ in run.subsets]) - before
            estimates = plan.effects[run.members]
            predicted_kept = bool(estimates[0] >= self._threshold)
            if not used:
                if run.is_single:  # rests on a wrong prediction, but is better than an estimate
                    stage.known[run.first] = changes[-1]
            elif run.is_single:
                decisions.append(self._decision(stage, run.first, changes[-1], exact=True))
                used = decisions[-1].kept == predicted_kept
            elif self._confirms(stage.forecast, run, estimates, changes):
                for i, effect in zip(range(run.first, run.last + 1), estimates, strict=True):
                    decisions.append(self._decision(stage, i, effect, exact=not stage.changing[i]))
            else:
                stage.divide(run)
                used = False
            if not (run.is_single and predicted_kept):
                before += changes[-1]
        return decisions, used

    def _confirms(self, forecast: Forecast, run: Run, estimates: Floats, changes: Floats) -> bool:
        """Return whether the changes of the loss on a run's rows agree with its estimates: whether even
        a member that alone were to blame for the largest difference would be removed."""
        expected = forecast.sums(run.members, estimates, run.subsets)
        off = np.abs(changes - expected).max()
        return bool(off + max(estimates.max(), 0.0) <= CLOSE * self._threshold)

    def _decision(self, stage: _Stage, i: int, effect: float, *, exact: bool) -> Decision:
        return Decision(stage.candidates[i], float(effect), bool(effect >= self._threshold), exact=exact)

    def _record(self, decisions: Sequence[Decision]) -> None:
        """Append decisions and remove their edges."""
        self.decisions += decisions
        self._predicted = []
        self._kept += sum(decision.kept for decision in decisions)
        self._engine.remove([decision.edge for decision in decisions if not decision.kept])

    # Snapshots and stats ---------------------------------------------------------------------------

    def _start_from_decisions(self) -> None:
        """Rebuild the engine's state; what was estimated is forgotten, so that a resumed search goes on
        as this one does."""
        super()._start_from_decisions()
        self._stage, self._by_rows = None, 0

    def _snapshot_if_due(self) -> None:
        """Take snapshots between stages, since a restart forgets what was estimated."""
        if self._stage is None:
            super()._snapshot_if_due()

    def _snapshot(self) -> Snapshot:
        audits = tuple(i for i, edge in enumerate(self._order) if edge in self._audits)
        return replace(super()._snapshot(), audits=audits)

    def record(self, stats: Stats) -> None:
        """Add what the sweep cost to ``stats``."""
        super().record(stats)
        if self._estimated:
            stats.estimates = {
                "edges": sum(not decision.exact for decision in self.decisions),
                "gradients": self._estimator.gradients,
                "stages": self._estimated,
                "measured_stages": self._measured,
            }
