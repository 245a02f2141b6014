"""Run ACDC (Conmy et al. 2023, arXiv 2304.14997), measuring many candidates at a time.

Edges are tested in order. The effect of an edge is the change of the loss when it is removed:

1. If ``effect < threshold``, the edge is removed permanently; otherwise it is kept.
2. The engine measures the next candidates together, each on the assumption that the decisions before
   it turn out as predicted. Effects after a mispredicted decision are discarded; they serve only to
   predict the next decisions.

The decisions are therefore those of the sequential algorithm, whatever the engine measured ahead. With
`Screening`, which is optional, effects are measured in low precision first and in FP32 where the
decision is uncertain; the sweep may then have to go back.

FP32 rounding depends on how the current state was reached. At intervals the sweep therefore restarts
the engine from the removed edges and emits a `Snapshot`: a sweep resumed from it continues exactly as
this one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pahq_plugin.discovery.screening import Screening
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.host import Edge
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Stats

Progress = Callable[[int, int], None]
"""Called with (edges decided, edges kept) as the search proceeds."""

SNAPSHOT_EVERY = 1024
"""Rows between two restarts of the engine, each of which costs about two forwards. An engine with
costlier rows sets a smaller number, ``snapshot_every``."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a sweep needs to continue, taken when the engine has just restarted.

    Attributes:
        decisions: taken so far, in order.
        predicted: whether each of the next candidates is expected to be kept.
        recent: whether each of the latest decisions needed FP32, see `Screening`.
        audits: indices of the edges that are always decided in FP32.
        guard: width of the guard band, see `GuardBand.state`; ``None`` without a band.
        evaluations, re_evaluations: so far.
    """

    decisions: tuple[Decision, ...]
    predicted: tuple[bool, ...]
    recent: tuple[bool, ...]
    audits: tuple[int, ...]
    guard: dict[str, float] | None
    evaluations: int
    re_evaluations: int


class Sweep:
    """One pass over the edges.

    Args:
        engine: measures effects; no edge is removed yet.
        order: all edges, in the order in which they are tested.
        threshold: an edge is removed if and only if its effect is below this.
        screening: selects the effects to measure again in FP32; ``None`` if all are measured in FP32.
        progress: called after each step.
        start: snapshot to continue from; the screening must come from the same snapshot.
        show: called with every snapshot, the last one after the last decision.
    """

    def __init__(
        self,
        engine: Engine,
        order: Sequence[Edge],
        threshold: float,
        screening: Screening | None = None,
        *,
        progress: Progress | None = None,
        start: Snapshot | None = None,
        show: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.decisions: list[Decision] = []
        self._kept = 0
        self._predicted: list[bool] = []
        self._engine = engine
        self._order = order
        self._threshold = threshold
        self._screening = screening
        self._progress = progress
        self._show = show
        self._earlier_evaluations = 0
        self._marked = engine.evaluations
        self._every = min(SNAPSHOT_EVERY, getattr(engine, "snapshot_every", SNAPSHOT_EVERY))
        if start is not None:
            self._resume(start)

    def run(self) -> list[Decision]:
        """Decide every edge and return one decision per edge, in order."""
        while not self._is_over:
            self._step()
            if self._progress is not None:
                self._progress(len(self.decisions), self._kept)
            self._snapshot_if_due()
        return self.decisions

    def _step(self) -> None:
        """Take the decisions that one call of the engine permits."""
        at, engine, screening = len(self.decisions), self._engine, self._screening
        candidates = self._order[at : at + engine.lookahead]
        predicted = (self._predicted + [False] * len(candidates))[: len(candidates)]
        in_fp32 = screening is not None and screening.fails
        effects = engine.effects(candidates, predicted, exact=in_fp32)
        if self._went_back():  # the engine may have caught up with earlier removals
            return
        valid = self._valid(effects, predicted)
        exact = dict(enumerate(effects[:valid]))
        if screening is not None and not in_fp32:
            exact, valid = screening.settle(candidates, predicted, effects[:valid])
        for i in range(valid):
            effect = exact.get(i, effects[i])
            kept = effect >= self._threshold
            self.decisions.append(Decision(candidates[i], effect, kept, exact=i in exact))
            if kept != predicted[i]:
                break
        taken = self.decisions[at:]
        self._kept += sum(decision.kept for decision in taken)
        engine.remove([decision.edge for decision in taken if not decision.kept])
        # Effects after a wrong prediction are invalid, but still predict which edges will be kept.
        self._predicted = [effect >= self._threshold for effect in effects[len(taken) :]]
        if screening is not None:
            screening.remember(taken)
            screened = {} if in_fp32 else exact
            pairs = [(effects[i], effect) for i, effect in screened.items() if i < len(taken)]
            screening.re_evaluations += len(screened)
            if not self._went_back() and screening.widened_by(pairs):
                self._go_back(screening.first_doubted(self.decisions))

    def _valid(self, effects: Sequence[float], predicted: Sequence[bool]) -> int:
        """Return how many leading effects rest on predictions that held."""
        for i, (effect, kept) in enumerate(zip(effects, predicted, strict=False)):
            if (effect >= self._threshold) != kept:
                return i + 1
        return len(effects)

    # Going back, when screening was wrong --------------------------------------------------------

    def _went_back(self) -> bool:
        """Withdraw screened decisions that the FP32 loss contradicts; return whether there were any."""
        if self._screening is None:
            return False
        at = self._screening.first_in_question(self.decisions)
        self._go_back(at)
        return at is not None

    def _go_back(self, at: int | None) -> None:
        """Withdraw the decisions from index ``at`` on; ``None`` withdraws none."""
        if at is not None:
            self._kept -= sum(decision.kept for decision in self.decisions[at:])
            del self.decisions[at:]
            self._predicted = []
            self._start_from_decisions()

    def _start_from_decisions(self) -> None:
        """Rebuild the engine's state from the decisions alone."""
        self._engine.restore([decision.edge for decision in self.decisions if not decision.kept])
        if self._screening is not None:
            self._screening.confirmed = len(self.decisions), self._engine.present_loss

    # Snapshots ------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return len(self.decisions) == len(self._order)

    def _snapshot_if_due(self) -> None:
        """At the end and every `SNAPSHOT_EVERY` rows, confirm the decisions, restart the engine and
        emit a snapshot."""
        if not self._is_over and self._engine.evaluations - self._marked < self._every:
            return
        self._engine.catch_up()
        if self._went_back():  # the snapshot is due again after the next step
            return
        if not self._is_over:
            self._start_afresh()
        if self._show is not None:
            self._show(self._snapshot())

    def _start_afresh(self) -> None:
        self._start_from_decisions()
        self._marked = self._engine.evaluations

    def _snapshot(self) -> Snapshot:
        screening = self._screening
        return Snapshot(
            decisions=tuple(self.decisions),
            predicted=tuple(self._predicted),
            recent=() if screening is None else tuple(screening.recent),
            audits=() if screening is None else screening.audit_indices(self._order),
            guard=None if screening is None else screening.guard_state(),
            evaluations=self._evaluations,
            re_evaluations=self.re_evaluations,
        )

    def _resume(self, start: Snapshot) -> None:
        self.decisions = list(start.decisions)
        self._kept = sum(decision.kept for decision in start.decisions)
        self._predicted = list(start.predicted)
        if self._screening is not None:
            self._screening.resume(start.recent, {self._order[i] for i in start.audits})
            self._screening.re_evaluations = start.re_evaluations
        self._earlier_evaluations = start.evaluations - self._engine.evaluations
        if not self._is_over:
            self._start_afresh()

    # What it cost ---------------------------------------------------------------------------------

    @property
    def _evaluations(self) -> int:
        return self._earlier_evaluations + self._engine.evaluations

    @property
    def re_evaluations(self) -> int:
        """Edges decided again in FP32 so far."""
        return 0 if self._screening is None else self._screening.re_evaluations

    def record(self, stats: Stats) -> None:
        """Add what the sweep cost to ``stats``."""
        stats.evaluations += self._evaluations
        stats.re_evaluations += self.re_evaluations
        if self._screening is not None:
            stats.guard = self._screening.guard_record()
