"""Measure effects in low precision first, and in FP32 where the decision is uncertain.

1. A screened effect, measured in low precision, is measured again in FP32 if it lies within the guard
   band or would keep the edge: no edge enters the circuit on a screened effect. One FP32 pass does this
   for all candidates of a screened pass (`Engine.settle`).
2. If most edges would need FP32 anyway, they are measured in FP32 directly.
3. Edges removed on screened effects are confirmed together whenever the engine knows the FP32 loss. If
   its change leaves room for one of them to reach the threshold, all are decided again in FP32; if it
   shows that rows are noisier than the band allows, those now within the band are.
4. Every edge decided in FP32 reveals the error of its screened effect. If that widens the band, the
   search goes back to the first decision that falls within the wider band.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate

from pahq_plugin.discovery.guard import AUDIT_EVERY, GuardBand, sample_of
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.host import Edge
from pahq_plugin.results.decision import Decision

RECENT = 16
"""Number of latest decisions that determine whether screening pays off for the next ones."""

TOO_MANY_IN_DOUBT = 0.25
"""Share of them in doubt from which screening no longer pays off: a low-precision pass takes about half
the time of an FP32 pass, and wrong predictions waste part of it."""


class Screening:
    """Decide which screened effects of a sweep need FP32.

    Args:
        engine: the sweep's engine, which screens.
        order: all edges, in the order in which they are tested.
        threshold: of the search.
        guard: band around the threshold; ``None`` trusts every screened effect.
        seed: selects the edges that are always decided in FP32, to monitor the band.

    Attributes:
        confirmed: the number of decisions confirmed by the FP32 loss, and that loss if known.
        re_evaluations: edges decided again in FP32 so far.
        recent: whether each of the latest decisions needed FP32.
    """

    def __init__(
        self,
        engine: Engine,
        order: Sequence[Edge],
        threshold: float,
        guard: GuardBand | None,
        *,
        seed: int,
    ) -> None:
        self._engine = engine
        self._threshold = threshold
        self._guard = guard
        self._audits = set() if guard is None else sample_of(order, seed, len(order) // AUDIT_EVERY)
        self.recent: deque[bool] = deque(maxlen=RECENT)
        self.confirmed: tuple[int, float | None] = 0, engine.present_loss
        self.re_evaluations = 0

    @property
    def fails(self) -> bool:
        """Whether so many of the latest decisions needed FP32 that screening the next ones would cost
        more than it saves."""
        return sum(self.recent) >= TOO_MANY_IN_DOUBT * RECENT

    def settle(
        self, candidates: Sequence[Edge], predicted: Sequence[bool], effects: Sequence[float]
    ) -> tuple[dict[int, float], int]:
        """Measure uncertain effects in FP32.

        Args:
            candidates: those of the screened pass.
            predicted: whether each is expected to be kept.
            effects: screened effects of the first candidates.

        Returns:
            FP32 effects of the uncertain candidates by index, and the number of candidates that can be
            decided.
        """
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

    def remember(self, taken: Iterable[Decision]) -> None:
        """Record which of these decisions needed FP32."""
        if self._guard is not None:
            self.recent.extend(d.kept or self._guard.doubts(d.effect) for d in taken)

    def widened_by(self, pairs: Iterable[tuple[float, float]]) -> bool:
        """Feed pairs of screened and FP32 effects to the band; return whether one of them widened it."""
        guard = self._guard
        return guard is not None and any([guard.watch(*pair) for pair in pairs])

    def first_doubted(self, decisions: Sequence[Decision]) -> int | None:
        """Return the index of the first screened decision that now lies within the band, or ``None``."""
        guard = self._guard
        assert guard is not None
        doubted = (i for i, d in enumerate(decisions) if not d.exact and guard.doubts(d.effect))
        return next(doubted, None)

    def first_in_question(self, decisions: Sequence[Decision]) -> int | None:
        """Return the index of the first decision that the change of the FP32 loss does not confirm.

        ``None`` if it confirms all of them, or if the loss is unknown now. Unconfirmed edges are decided
        in FP32 when their turn comes again.
        """
        (at, before), after = self.confirmed, self._engine.present_loss
        if self._guard is None or before is None or after is None:
            return None
        in_question = self._in_question(self._guard, decisions[at:], after - before)
        if in_question:
            self._audits |= {decisions[at + i].edge for i in in_question}
            return at + in_question[0]
        self.confirmed = len(decisions), after
        return None

    def _in_question(self, guard: GuardBand, batch: Sequence[Decision], change: float) -> Sequence[int]:
        """Return the indices of the decisions that a ``change`` of the FP32 loss does not confirm.

        The screened effects of the removed edges add up to roughly the change of the loss. If one of
        them alone were wrong, the sum would be off by at least the distance of that effect from the
        threshold. The error of one row enters two effects with opposite signs and cancels in the sum;
        what remains is the error of the last row, which shows how wide the band must be for the others.
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

    # Snapshots and stats --------------------------------------------------------------------------

    def resume(self, recent: Iterable[bool], audits: set[Edge]) -> None:
        """Continue from a snapshot, from which the guard was already restored."""
        self.recent.extend(recent)
        self._audits = audits

    def audit_indices(self, order: Sequence[Edge]) -> tuple[int, ...]:
        """Return the indices of the edges that are always decided in FP32."""
        return tuple(i for i, edge in enumerate(order) if edge in self._audits)

    def guard_state(self) -> dict[str, float] | None:
        """Return the state of the band; ``None`` without one."""
        return None if self._guard is None else self._guard.state()

    def guard_record(self) -> dict[str, float]:
        """Return the band as recorded in `Stats`; empty without one."""
        guard = self._guard
        if guard is None:
            return {}
        names = ("relative", "floor", "widened", "drift")
        return {name: getattr(guard, name) for name in names}
