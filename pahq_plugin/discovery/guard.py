"""The guard band: which screened effects are too close to the threshold to be trusted.

The rounding noise of an effect is mostly multiplicative, above a small additive floor. So an edge with
a screened effect e within ``g |e| + 8 floor`` of the threshold is decided again in FP32.

1. *Calibrate*: on a seeded sample of edges, measure the effect both screened and in FP32. The floor is
   the median difference among the smaller half of the effects; g is 0.3, or more if the relative
   differences of the larger half require it.
2. *Watch*: every edge that is decided in FP32 (inside the band, or a seeded one in 128 outside it)
   shows one more difference. A difference above half the band's width widens the band, and the search
   returns to the first decision that the wider band puts in doubt.
3. *Drift*: whenever the FP32 loss becomes known, it shows the error of the last screened row. That
   error grows with the effects removed in a row, and so does the band, for all edges since then.

Guaranteed: a decision marked exact is that of FP32, and every edge of the circuit is decided this way
(see `search`). Measured, not proved: no edge removed on a screened effect outside the band should have
been kept. ``guard=math.inf`` makes every decision exact.
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
"""An effect is the difference of two rows, and each row's error may be twice the measured one."""

STATE = ("relative", "floor", "fixed", "widened", "drift")

SAMPLE = 12
AUDIT_EVERY = 128

FLOOR_OF_FP32 = 1e-7
"""Rounding error of a loss near 1 in FP32: no screened effect is more precise than this."""


@dataclass
class GuardBand:
    """Half-width ``relative * |effect| + 8 floor + 4 drift * gone`` around the threshold.

    Attributes:
        threshold: the search's threshold.
        relative: g of the band.
        floor: additive noise, in units of the loss.
        fixed: whether the user set the width, so that it never changes.
        widened: how often `watch` widened the band.
        drift: error of a screened row's loss, divided by the sum of the absolute effects of the edges
            removed in that row (``gone``, in units of the loss).
    """

    threshold: float
    relative: float
    floor: float
    fixed: bool = False
    widened: int = 0
    drift: float = 0.0

    def state(self) -> dict[str, float]:
        """Return everything that the band has learnt, as numbers."""
        return {name: float(getattr(self, name)) for name in STATE}

    @staticmethod
    def from_state(threshold: float, state: Mapping[str, float]) -> GuardBand:
        """Restore a band from its `state`."""
        return GuardBand(
            threshold,
            state["relative"],
            state["floor"],
            bool(state["fixed"]),
            int(state["widened"]),
            state["drift"],
        )

    def doubts(self, effect: float, gone: float = 0.0) -> bool:
        """Return whether a screened effect is too close to the threshold."""
        width = self.half_width(effect, gone)
        return math.isinf(self.relative) or abs(effect - self.threshold) < width

    def half_width(self, effect: float, gone: float = 0.0) -> float:
        """Return the half-width of the band at a screened effect."""
        return self.relative * abs(effect) + FLOOR_MULTIPLE * self.floor + DRIFTS * self.drift * gone

    def see_drift(self, off: float, gone: float) -> None:
        """Update the drift with the error of a screened row's loss, beyond the noise floor."""
        beyond = off - self.floor - FLOOR_MULTIPLE * FLOOR_OF_FP32
        if not self.fixed and gone > 0:
            self.drift = max(self.drift, beyond / gone)

    def watch(self, screened: float, exact: float) -> bool:
        """Compare one more pair of effects; return whether the band had to be widened.

        Once widened, the band is at least twice as wide as the difference seen.
        """
        difference = abs(screened - exact)
        wanted = 2 * difference * (1 + 1e-9)  # rounding could otherwise widen twice for the same pair
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
        """Return whether the difference could change a decision: whether the effects are not both far
        from the threshold on the same side."""
        return (screened < self.threshold) != (exact < self.threshold) or (
            abs(screened - exact) > 0.5 * abs(screened - self.threshold)
        )


def fixed_band(threshold: float, relative: float) -> GuardBand:
    """Return the band for ``guard=relative``; 0 doubts nothing, ``math.inf`` everything."""
    floor = FLOOR_OF_FP32 if relative > 0 else 0.0
    return GuardBand(threshold, relative, floor, fixed=True)


def calibrated_band(threshold: float, loss: float, pairs: Sequence[tuple[float, float]]) -> GuardBand:
    """Calibrate the band for ``guard="auto"``.

    Args:
        threshold: the search's threshold.
        loss: the clean model's loss; its magnitude bounds FP32's own rounding error from below.
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
    """Make the guard band that ``PrecisionConfig.guard`` asks for; ``"auto"`` calibrates it.

    The sampled effects are those of removing a single edge from the whole model.
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
    """Draw up to ``count`` edges, reproducibly by ``seed``."""
    return set(random.Random(seed).sample(list(order), min(count, len(order))))
