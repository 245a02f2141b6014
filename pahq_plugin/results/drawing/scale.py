"""How the size and sign of an effect look: colours and widths on a logarithmic scale.

Blue for what raises the loss, orange for what lowers it: hues that colour-blind readers tell apart,
each from light to dark in even steps, and dark enough at the light end to be seen on white.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

POSITIVE = ("#7fb2d9", "#4f8fc4", "#2d6aa8", "#164a86", "#082a58")
NEGATIVE = ("#e0a768", "#cc7f36", "#ab5a17", "#833f0c", "#572706")

LEAST_DECADES, MOST_DECADES = 1.0, 4.0
"""What the scale covers below the largest effect: effects of nearly one size look nearly the same, and
one tiny effect does not make all others look large."""

THINNEST, THICKEST = 0.9, 5.5


class EffectScale:
    """Colours and widths for the effects of one circuit."""

    def __init__(self, effects: Iterable[float]) -> None:
        sizes = [abs(effect) for effect in effects if effect]
        self.largest = max(sizes, default=0.0)
        self.smallest = max(min(sizes, default=0.0), self.largest * 10**-MOST_DECADES)
        self._start = min(self.smallest, self.largest * 10**-LEAST_DECADES)

    def strength(self, effect: float) -> float:
        """0 where the scale starts and for no effect, 1 for the largest, the logarithm in between."""
        if abs(effect) <= self._start or not self._start:
            return 0.0
        return math.log(abs(effect) / self._start) / math.log(self.largest / self._start)

    def colour(self, effect: float) -> str:
        """As ``#rrggbb``."""
        return between(NEGATIVE if effect < 0 else POSITIVE, self.strength(effect))

    def width(self, effect: float) -> float:
        """Of a line, in pixels."""
        return round(THINNEST + (THICKEST - THINNEST) * self.strength(effect) ** 1.5, 2)

    def samples(self) -> list[float]:
        """Sizes for a legend: both ends and the powers of ten between them, ascending."""
        if not self.largest:
            return []
        powers = range(math.ceil(math.log10(self.smallest)), math.floor(math.log10(self.largest)) + 1)
        tens = [10.0**power for power in powers]
        apart = [ten for ten in tens if 1.5 * self.smallest < ten < self.largest / 1.5]
        return sorted({self.smallest, *apart, self.largest})


def between(stops: Sequence[str], share: float) -> str:
    """The colour a ``share`` of the way along evenly spaced ``#rrggbb`` stops."""
    place = share * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    low, high = (bytes.fromhex(stop[1:]) for stop in stops[first : first + 2])
    mixed = (round(a + (b - a) * (place - first)) for a, b in zip(low, high, strict=True))
    return "#" + bytes(mixed).hex()
