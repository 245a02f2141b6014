"""Colour and line width of an effect, by sign and by magnitude on a logarithmic scale.

Blue for edges whose removal raises the loss, orange for edges whose removal lowers it: hues that
colour-blind readers can tell apart. Each runs from light to dark in even steps, and its light end is
dark enough to be seen on white.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

POSITIVE = ("#7fb2d9", "#4f8fc4", "#2d6aa8", "#164a86", "#082a58")
NEGATIVE = ("#e0a768", "#cc7f36", "#ab5a17", "#833f0c", "#572706")

LEAST_DECADES, MOST_DECADES = 1.0, 4.0
"""Decades that the scale covers below the largest effect. The least makes similar effects look similar;
the most keeps one tiny effect from making all others look large."""

THINNEST, THICKEST = 0.9, 5.5


class EffectScale:
    """Colours and widths for the effects of one circuit."""

    def __init__(self, effects: Iterable[float]) -> None:
        sizes = [abs(effect) for effect in effects if effect]
        self.largest = max(sizes, default=0.0)
        self.smallest = max(min(sizes, default=0.0), self.largest * 10**-MOST_DECADES)
        self._start = min(self.smallest, self.largest * 10**-LEAST_DECADES)

    def strength(self, effect: float) -> float:
        """Return 0 at or below the start of the scale, 1 for the largest effect, log-linear between."""
        if abs(effect) <= self._start or not self._start:
            return 0.0
        return math.log(abs(effect) / self._start) / math.log(self.largest / self._start)

    def colour(self, effect: float) -> str:
        """Return the effect's colour as ``#rrggbb``."""
        return between(NEGATIVE if effect < 0 else POSITIVE, self.strength(effect))

    def width(self, effect: float) -> float:
        """Return the effect's line width in pixels."""
        return round(THINNEST + (THICKEST - THINNEST) * self.strength(effect) ** 1.5, 2)

    def samples(self) -> list[float]:
        """Return magnitudes for a legend: both ends and the powers of ten between them, ascending."""
        if not self.largest:
            return []
        powers = range(math.ceil(math.log10(self.smallest)), math.floor(math.log10(self.largest)) + 1)
        tens = [10.0**power for power in powers]
        apart = [ten for ten in tens if 1.5 * self.smallest < ten < self.largest / 1.5]
        return sorted({self.smallest, *apart, self.largest})


def between(stops: Sequence[str], share: float) -> str:
    """Interpolate evenly spaced ``#rrggbb`` stops at ``share``, between 0 and 1."""
    place = share * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    low, high = (bytes.fromhex(stop[1:]) for stop in stops[first : first + 2])
    mixed = (round(a + (b - a) * (place - first)) for a, b in zip(low, high, strict=True))
    return "#" + bytes(mixed).hex()
