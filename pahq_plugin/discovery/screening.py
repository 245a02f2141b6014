"""Effects measured in few bits first, and in FP32 where that is not certain.

1. An effect screened in few bits is measured again in FP32 and decided on that if the guard band doubts
   it, or if it would keep the edge: no edge is in the circuit on a screened effect. One FP32 pass does
   that for all candidates of a screened pass (`Engine.settle`).
2. Where most edges would be decided again, they are measured in FP32 at once.
3. Edges removed on screened effects are confirmed together, whenever the engine knows the FP32 loss: if
   its change leaves room for one of them to reach the threshold, they are all decided again in FP32; if
   it shows that rows are noisier than the band allows for, those now in doubt are.
4. Every edge that is decided in FP32 shows how far its screened effect was off. Where that widens the
   band, the search goes back to the first decision that the wider band puts in doubt.
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
"""Decisions that say whether screening is worth while for the next ones."""

TOO_MANY_IN_DOUBT = 0.25
"""A share of them, from which on it is not: a pass in few bits takes about half as long as one in full
precision, and wrong predictions waste part of it."""


class Screening:
    """What a sweep asks of effects that were measured in few bits.

    Args:
        engine: of the sweep; it screens.
        order: all edges, in the order in which they are tested.
        threshold: of the search.
        guard: band around the threshold; ``None`` trusts every screened effect.
        seed: chooses the edges that are decided in FP32 to watch the band.

    Attributes:
        confirmed: how many decisions the FP32 loss has confirmed, and that loss, if it was known.
        re_evaluations: edges decided again in FP32 so far.
        recent: whether each of the last decisions needed FP32.
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
        """Whether of late so many edges had to be decided in FP32 that to screen the next ones first
        would cost more than it saves."""
        return sum(self.recent) >= TOO_MANY_IN_DOUBT * RECENT

    def settle(
        self, candidates: Sequence[Edge], predicted: Sequence[bool], effects: Sequence[float]
    ) -> tuple[dict[int, float], int]:
        """Measure in FP32 what is in doubt.

        Args:
            candidates: of the screened pass.
            predicted: whether each is expected to be kept.
            effects: screened, of the first candidates.

        Returns:
            FP32 effects of the candidates that are in doubt, by index, and how many candidates can be
            decided with them.
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
        """Take in which of the last decisions needed FP32."""
        if self._guard is not None:
            self.recent.extend(d.kept or self._guard.doubts(d.effect) for d in taken)

    def widened_by(self, pairs: Iterable[tuple[float, float]]) -> bool:
        """Whether pairs of screened and FP32 effects widen the band; each is taken in."""
        guard = self._guard
        return guard is not None and any([guard.watch(*pair) for pair in pairs])

    def first_doubted(self, decisions: Sequence[Decision]) -> int | None:
        """The first screened decision that the band doubts by now; ``None`` if it doubts none."""
        guard = self._guard
        assert guard is not None
        doubted = (i for i, d in enumerate(decisions) if not d.exact and guard.doubts(d.effect))
        return next(doubted, None)

    def first_in_question(self, decisions: Sequence[Decision]) -> int | None:
        """The first decision since the FP32 loss was last known that its change since then does not
        confirm; ``None`` where it confirms all, or is not known now.

        Those that it does not confirm are decided in FP32 when they come again.
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
        """Which decisions of a batch a ``change`` of the FP32 loss does not confirm.

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

    # Snapshots and stats --------------------------------------------------------------------------

    def resume(self, recent: Iterable[bool], audits: set[Edge]) -> None:
        """Go on as a snapshot says; the guard was made of it already."""
        self.recent.extend(recent)
        self._audits = audits

    def audit_indices(self, order: Sequence[Edge]) -> tuple[int, ...]:
        """Where the edges stand that are decided in FP32 whatever their effect."""
        return tuple(i for i, edge in enumerate(order) if edge in self._audits)

    def guard_state(self) -> dict[str, float] | None:
        """What the band has learnt; ``None`` without one."""
        return None if self._guard is None else self._guard.state()

    def guard_record(self) -> dict[str, float]:
        """The band as `Stats` shows it; empty without one."""
        guard = self._guard
        if guard is None:
            return {}
        names = ("relative", "floor", "widened", "drift")
        return {name: getattr(guard, name) for name in names}
