"""The ACDC sweep (Conmy et al. 2023, arXiv 2304.14997), with screening in low precision.

Edges are taken in order. For the next candidates the engine gives effects as if each candidate
before had gone as predicted:

1. ``effect < threshold``: the edge is removed, for good; otherwise it is kept;
2. effects measured behind a decision that was not predicted are thrown away, since they assumed the
   other one; they only serve to predict the next decisions;
3. an effect screened in low precision is measured again in FP32 and decided on that if the guard
   band doubts it, or if it would keep the edge: no edge is in the circuit on a screened effect;
   one FP32 pass does that for all candidates of a screened pass (`Engine.settle`);
4. where most edges would be decided again, they are measured in FP32 at once;
5. edges removed on screened effects are confirmed together, whenever the engine knows the FP32 loss:
   if its change leaves room for one of them to reach the threshold, they are all decided again in
   FP32; if it shows that rows are noisier than the band allows for, those now in doubt are.

The decisions are those of the sequential algorithm, whatever the engine measured ahead.

Rounding of FP32 depends on how the present state was reached. Every now and then the sweep therefore
lets the engine start afresh from the edges that are gone, and shows a `Snapshot`: a sweep that starts
from it goes on exactly as this one does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pahq_plugin.engine import Engine
from pahq_plugin.guard import AUDIT_EVERY, SAMPLE, GuardBand, calibrated_band, fixed_band
from pahq_plugin.host import Edge
from pahq_plugin.result import Decision, Stats

Progress = Callable[[int, int], None]
"""Called with (edges decided, edges kept) as the search goes."""

SNAPSHOT_EVERY = 1024
"""Rows of passes between two fresh starts of the engine, each of which costs about two forwards. An
engine whose rows cost more asks for fewer: its ``snapshot_every``."""


RECENT = 16
"""Decisions that say whether screening is worth while for the next ones."""

TOO_MANY_IN_DOUBT = 0.25
"""A share of them, from which on it is not: a pass in few bits takes about half as long as one in full
precision, and wrong predictions waste part of it."""


@dataclass(frozen=True)
class Snapshot:
    """All that a sweep needs to go on, at a moment at which the engine has started afresh.

    Attributes:
        decisions: taken so far, in order.
        predicted: whether each of the next candidates is expected to be kept.
        recent: whether each of the last decisions needed FP32, see `TOO_MANY_IN_DOUBT`.
        audits: indices in the order of edges that are decided in FP32 whatever their effect.
        guard: the band's width, see `GuardBand.state`; ``None`` without one.
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
        guard: band around the threshold; ``None`` trusts every screened effect.
        seed: chooses the edges that are decided in FP32 to watch the band.
        progress: told how far the search is.
        start: goes on from there; the guard is then given as it was.
        show: told every snapshot, the last one behind the last decision.
    """

    def __init__(
        self,
        engine: Engine,
        order: Sequence[Edge],
        threshold: float,
        guard: GuardBand | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        start: Snapshot | None = None,
        show: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.decisions: list[Decision] = []
        self.re_evaluations = 0
        self._kept = 0
        self._predicted: list[bool] = []
        self._engine = engine
        self._order = order
        self._threshold = threshold
        self._guard = guard if engine.screens else None
        self._audits = _sample(order, seed, len(order) // AUDIT_EVERY) if self._guard else set()
        self._progress = progress
        self._show = show
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._confirmed: tuple[int, float | None] = 0, engine.present_loss
        self._earlier_evaluations = 0
        self._marked = engine.evaluations
        self._every = min(SNAPSHOT_EVERY, getattr(engine, "snapshot_every", SNAPSHOT_EVERY))
        if start is not None:
            self._resume(start)

    def run(self) -> list[Decision]:
        """Decide every edge; returns one decision per edge, in order."""
        while len(self.decisions) < len(self._order):
            self._step()
            if self._progress is not None:
                self._progress(len(self.decisions), self._kept)
            self._snapshot_if_due()
        return self.decisions

    def _snapshot_if_due(self) -> None:
        """At the end, and after every `SNAPSHOT_EVERY` rows or fewer, confirm what is decided; then
        start the engine afresh and show a snapshot."""
        if not self._is_over and self._engine.evaluations - self._marked < self._every:
            return
        self._engine.catch_up()
        if not self._confirm():  # and so it is due again behind the next step
            return
        if not self._is_over:
            self._start_afresh()
        if self._show is not None:
            self._show(self._snapshot())

    @property
    def _is_over(self) -> bool:
        return len(self.decisions) == len(self._order)

    def _start_afresh(self) -> None:
        """Let the engine forget how its present state came about."""
        self._engine.restore([d.edge for d in self.decisions if not d.kept])
        self._confirmed = len(self.decisions), self._engine.present_loss
        self._marked = self._engine.evaluations

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            tuple(self.decisions),
            tuple(self._predicted),
            tuple(self._recent),
            tuple(i for i, edge in enumerate(self._order) if edge in self._audits),
            None if self._guard is None else self._guard.state(),
            self._evaluations,
            self.re_evaluations,
        )

    def _resume(self, start: Snapshot) -> None:
        self.decisions = list(start.decisions)
        self.re_evaluations = start.re_evaluations
        self._kept = sum(decision.kept for decision in start.decisions)
        self._predicted = list(start.predicted)
        self._recent.extend(start.recent)
        self._audits = {self._order[i] for i in start.audits}
        self._earlier_evaluations = start.evaluations - self._engine.evaluations
        if not self._is_over:
            self._start_afresh()

    @property
    def _evaluations(self) -> int:
        return self._earlier_evaluations + self._engine.evaluations

    def _step(self) -> None:
        """Take the decisions that one call of the engine allows."""
        at = len(self.decisions)
        candidates = self._order[at : at + self._engine.lookahead]
        predicted = (self._predicted + [False] * len(candidates))[: len(candidates)]
        exact = self._screening_fails()
        effects = self._engine.effects(candidates, predicted, exact=exact)
        if not self._confirm():  # the engine may have caught up with earlier removals
            return
        valid = self._valid(effects, predicted)
        settled = dict(enumerate(effects[:valid]))
        if self._engine.screens and not exact:
            settled, valid = self._settle(candidates, predicted, effects[:valid])
        for i in range(valid):
            self._decide(candidates[i], settled.get(i, effects[i]), i in settled)
            if self.decisions[-1].kept != predicted[i]:
                break
        decided = len(self.decisions) - at
        self._engine.remove([d.edge for d in self.decisions[at:] if not d.kept])
        # Effects behind a wrong prediction are not valid, but they say which edges will be kept.
        self._predicted = [effect >= self._threshold for effect in effects[decided:]]
        if self._guard is None:
            return
        self._recent.extend(d.kept or self._guard.doubts(d.effect) for d in self.decisions[at:])
        pairs = []
        if not exact:
            self.re_evaluations += len(settled)
            pairs = [(effects[i], exactly) for i, exactly in settled.items() if i < decided]
        if self._confirm() and any([self._guard.watch(*pair) for pair in pairs]):  # each is to be seen
            self._rewind(self._guard)

    def _screening_fails(self) -> bool:
        """Whether of late so many edges had to be decided in FP32 that to screen the next ones first
        would cost more than it saves."""
        return sum(self._recent) >= TOO_MANY_IN_DOUBT * RECENT

    def _valid(self, effects: Sequence[float], predicted: Sequence[bool]) -> int:
        """How many effects assume nothing that the ones before deny."""
        for i, (effect, kept) in enumerate(zip(effects, predicted, strict=False)):
            if (effect >= self._threshold) != kept:
                return i + 1
        return len(effects)

    def _settle(
        self, candidates: Sequence[Edge], predicted: Sequence[bool], effects: Sequence[float]
    ) -> tuple[dict[int, float], int]:
        """FP32 effects of the candidates that are in doubt, by index, and how many candidates can be
        decided with them."""
        size = len(effects)
        doubted = [self._doubts(*pair) for pair in zip(candidates, effects, strict=False)]
        which = [i for i, is_doubted in enumerate(doubted) if is_doubted]
        if not which:
            return {}, size
        found = self._engine.settle(candidates[:size], predicted[:size], doubted)
        settled = dict(zip(which, found, strict=False))
        return settled, size if len(found) == len(which) else which[len(found)]

    def _doubts(self, edge: Edge, effect: float) -> bool:
        return self._guard is not None and (
            effect >= self._threshold or edge in self._audits or self._guard.doubts(effect)
        )

    def _decide(self, edge: Edge, effect: float, exact: bool) -> None:
        kept = effect >= self._threshold
        self.decisions.append(Decision(edge, effect, kept, exact))
        self._kept += kept

    def _confirm(self) -> bool:
        """Whether the FP32 loss, as far as it is known, rules out that an edge removed since it was
        last known should have been kept; if not, the edges in question are taken back and decided in
        FP32.
        """
        (at, before), after = self._confirmed, self._engine.present_loss
        if self._guard is None or before is None or after is None:
            return True
        in_question = self._in_question(self._guard, self.decisions[at:], after - before)
        if in_question:
            self._audits |= {self.decisions[at + i].edge for i in in_question}
            self._go_back(at + in_question[0])
            return False
        self._confirmed = len(self.decisions), after
        return True

    def _in_question(self, guard: GuardBand, batch: Sequence[Decision], change: float) -> Sequence[int]:
        """Which of the decisions since the FP32 loss was last known its ``change`` since then does not
        confirm.

        The screened effects of the removed edges add up to about the change of the loss. For one of
        them to be wrong alone, the sum has to be off by what that effect lacks of the threshold. An
        error of one row enters two effects with opposite signs and cancels in the sum, but what the
        sum is off by is the last row's error, and so shows how wide the band has to be for the others.
        """
        gone = list(accumulate(0.0 if d.kept else abs(d.effect) for d in batch))
        screened = [i for i, d in enumerate(batch) if not d.exact]
        if not screened:
            return []
        off = abs(change - sum(d.effect for d in batch if not d.kept))
        if off >= self._threshold - max(batch[i].effect for i in screened):
            return range(len(batch))
        guard.see_drift(off, gone[-1])
        return [i for i in screened if guard.doubts(batch[i].effect, gone[i])]

    def _rewind(self, guard: GuardBand) -> None:
        """Go back to the first screened decision that the widened band doubts."""
        for at, decision in enumerate(self.decisions):
            if not decision.exact and guard.doubts(decision.effect):
                self._go_back(at)
                return

    def _go_back(self, at: int) -> None:
        """Forget the decisions since ``at``."""
        del self.decisions[at:]
        self._predicted = []
        self._kept = sum(d.kept for d in self.decisions)
        self._engine.restore([d.edge for d in self.decisions if not d.kept])
        self._confirmed = at, self._engine.present_loss

    def record(self, stats: Stats) -> None:
        """Add what the sweep cost to ``stats``."""
        stats.evaluations += self._evaluations
        stats.re_evaluations += self.re_evaluations
        if self._guard is not None:
            stats.guard = {
                "relative": self._guard.relative,
                "floor": self._guard.floor,
                "widened": self._guard.widened,
                "drift": self._guard.drift,
            }


def make_guard(
    engine: Engine, order: Sequence[Edge], threshold: float, guard: str | float, seed: int
) -> GuardBand | None:
    """The guard band that ``PrecisionConfig.guard`` asks for, calibrated where it says so.

    The sample's effects are those of removing one edge from the whole model.
    """
    if not engine.screens or guard == 0:
        return None
    if not isinstance(guard, str):
        return fixed_band(threshold, float(guard))
    sample = sorted(_sample(order, seed, SAMPLE), key=order.index)
    pairs = [
        (
            engine.effects([edge], [False], exact=False)[0],
            engine.effects([edge], [False], exact=True)[0],
        )
        for edge in sample
    ]
    return calibrated_band(threshold, engine.loss, pairs)


def _sample(order: Sequence[Edge], seed: int, count: int) -> set[Edge]:
    return set(random.Random(seed).sample(list(order), min(count, len(order))))
