"""The guard band: which screened effects are too near the threshold to be trusted.

Rounding noise of an effect is mostly multiplicative over a small additive floor, so an edge whose
screened effect e lies within ``g |e| + 8 floor`` of the threshold is decided again in FP32.

1. *Calibrate*: on a seeded sample of edges measure the effect screened and in FP32. The floor is the
   median difference among the smaller half of the effects; g is 0.3, or more if the relative
   differences of the larger half ask for it.
2. *Watch*: every edge that is decided in FP32 (inside the band, or a seeded one in 128 outside it)
   shows another difference. One beyond half the band widens the band, and the search goes back to
   the first decision that the wider band puts in doubt.
3. *Drift*: whenever the FP32 loss becomes known, it shows how far the last screened row was off.
   That error grows with what is gone in a row, and so the band does, for the edges since then.

What is guaranteed: a decision marked exact is FP32's, and every edge of the circuit is decided so (see
`search`). What is measured, not proved: that no edge removed on a screened effect outside the band
should have been kept. ``guard=math.inf`` makes every decision exact.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pahq_plugin.engines.protocol import Engine
from pahq_plugin.host import Edge

RELATIVE = 0.3


FLOOR_MULTIPLE = 8.0


DRIFTS = 4.0
"""An effect is the difference of two rows, and a row may be twice as far off as the one measured."""


STATE = ("relative", "floor", "fixed", "widened", "drift")


SAMPLE = 12


AUDIT_EVERY = 128


FLOOR_OF_FP32 = 1e-7
"""Rounding of a loss near 1 in FP32: no screened effect is better than this."""


@dataclass
class GuardBand:
    """Half-width ``relative * |effect| + 8 floor + 4 drift * gone`` around the threshold.

    Attributes:
        threshold: the search's threshold.
        relative: g of the band.
        floor: additive noise, in units of the loss.
        fixed: whether the width was set by the user and never changes.
        widened: how often watching made it wider.
        drift: error of the loss of a screened row, over the sum of the absolute effects of the edges
            that are gone in it (`gone`, in units of the loss).
    """

    threshold: float
    relative: float
    floor: float
    fixed: bool = False
    widened: int = 0
    drift: float = 0.0

    def state(self) -> dict[str, float]:
        """All that it has learnt, as numbers."""
        return {name: float(getattr(self, name)) for name in STATE}

    @staticmethod
    def from_state(threshold: float, state: Mapping[str, float]) -> GuardBand:
        """The band of that `state`."""
        return GuardBand(
            threshold,
            state["relative"],
            state["floor"],
            bool(state["fixed"]),
            int(state["widened"]),
            state["drift"],
        )

    def doubts(self, effect: float, gone: float = 0.0) -> bool:
        """Whether a screened effect is too near the threshold."""
        width = self.half_width(effect, gone)
        return math.isinf(self.relative) or abs(effect - self.threshold) < width

    def half_width(self, effect: float, gone: float = 0.0) -> float:
        """Half-width of the band at a screened effect."""
        return self.relative * abs(effect) + FLOOR_MULTIPLE * self.floor + DRIFTS * self.drift * gone

    def see_drift(self, off: float, gone: float) -> None:
        """Take in by how much the loss of a screened row was off, beyond noise that is there anyway."""
        beyond = off - self.floor - FLOOR_MULTIPLE * FLOOR_OF_FP32
        if not self.fixed and gone > 0:
            self.drift = max(self.drift, beyond / gone)

    def watch(self, screened: float, exact: float) -> bool:
        """Take in one more pair of effects; returns whether the band had to be widened.

        Afterwards the band is at least twice as wide as the difference seen.
        """
        difference = abs(screened - exact)
        wanted = 2 * difference * (1 + 1e-9)  # or rounding would widen twice for the same pair
        if self.fixed or difference <= self.half_width(screened) / 2:
            return False
        if not self._matters(screened, exact):
            return False
        if abs(screened) > self.threshold:
            self.relative = max(2 * self.relative, wanted / abs(screened))
        else:
            missing = wanted - self.relative * abs(screened)
            self.floor = max(self.floor, missing / FLOOR_MULTIPLE)
        self.widened += 1
        return True

    def _matters(self, screened: float, exact: float) -> bool:
        """Differences of effects that stay far on one side of the threshold change no decision."""
        return (screened < self.threshold) != (exact < self.threshold) or (
            abs(screened - exact) > 0.5 * abs(screened - self.threshold)
        )


def fixed_band(threshold: float, relative: float) -> GuardBand:
    """The band for ``guard=relative``; 0 doubts nothing, ``math.inf`` everything."""
    floor = FLOOR_OF_FP32 if relative > 0 else 0.0
    return GuardBand(threshold, relative, floor, fixed=True)


def calibrated_band(threshold: float, loss: float, pairs: Sequence[tuple[float, float]]) -> GuardBand:
    """The band for ``guard="auto"``.

    Args:
        threshold: the search's threshold.
        loss: the clean model's loss, whose size bounds FP32's own rounding from below.
        pairs: (screened, exact) effects of a sample of edges.
    """
    least = FLOOR_OF_FP32 * max(1.0, abs(loss))
    moving = sorted((p for p in pairs if p != (0.0, 0.0)), key=lambda p: abs(p[1]))
    if not moving:
        return GuardBand(threshold, RELATIVE, least)
    half = (len(moving) + 1) // 2
    floor = max(least, median(abs(s - e) for s, e in moving[:half]))
    large = [abs(s - e) / abs(e) for s, e in moving[half:] if abs(e) > 100 * floor]
    relative = max(RELATIVE, 10 * median(large)) if large else RELATIVE
    return GuardBand(threshold, relative, floor)


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
    sample = sorted(sample_of(order, seed, SAMPLE), key=order.index)
    pairs = [
        (
            engine.effects([edge], [False], exact=False)[0],
            engine.effects([edge], [False], exact=True)[0],
        )
        for edge in sample
    ]
    return calibrated_band(threshold, engine.loss, pairs)


def sample_of(order: Sequence[Edge], seed: int, count: int) -> set[Edge]:
    """Draw edges from a seed."""
    return set(random.Random(seed).sample(list(order), min(count, len(order))))
