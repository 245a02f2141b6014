"""Forecast the effects of candidates that are removed one after another, from derivatives of the loss.

To second order, removing candidate i after others changes the loss by

    effect_i = slope_i + p_i . (sum of p_j over those removed before) + p_i . p_i / 2

where ``p`` are probes of the loss's Gauss-Newton curvature: one normal draw per prompt is enough, since
effects average over prompts. At the clean model the KL divergence is flat, and the quadratic part is all
there is. What the model behind the logits adds is seen in the slopes at the end of the path: the part of
their change that the curvature does not explain is taken to grow evenly along the path, and its size
tells how far to trust a forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pahq_plugin.engines.protocol import Slopes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """Predicted effects of candidates, in order.

    Attributes:
        slopes: ``[candidate]``, at the state that the forecast starts from.
        probes: ``[candidate, probe]``.
        gone: sum of the probes of candidates removed since then, ``[probe]``.
        bend: unexplained change of each slope until its candidate's turn, ``[candidate]``.
        doubt: unexplained change of each slope over the whole path, ``[candidate]``, at least 0.
    """

    slopes: Floats
    probes: Floats
    gone: Floats
    bend: Floats
    doubt: Floats

    @staticmethod
    def of(slopes: Slopes) -> Forecast:
        """Start at the first state of ``slopes``."""
        nothing = np.zeros(len(slopes.probes))
        gone = np.zeros(slopes.probes.shape[1])
        return Forecast(slopes.first, slopes.probes, gone, nothing, nothing)

    @property
    def curvature(self) -> Floats:
        """The part of each effect that is due to the curvature along its candidate alone."""
        return np.square(self.probes).sum(axis=1) / 2

    def bent(self, at_end: Floats, kept: NDArray[np.bool_]) -> Forecast:
        """Correct the forecast by the slopes ``[candidate]`` at the end of a path that keeps some."""
        step = np.where(kept, 0.0, np.square(self.probes).sum(axis=1))
        along = (np.cumsum(step) - step / 2) / max(step.sum(), np.finfo(float).tiny)
        explained = self.probes @ (self.gone + self.probes[~kept].sum(axis=0))
        rest = at_end - self.slopes - explained
        return replace(self, bend=along * rest, doubt=np.abs(rest))

    def effects(self, threshold: float, known: Mapping[int, float]) -> Floats:
        """Return the effect of each candidate if those before it with an effect below ``threshold`` are
        removed; ``known`` overrides the forecast for some."""
        own = self.slopes + self.bend + self.curvature
        effects, gone, first = np.empty(len(own)), self.gone, 0
        while first < len(own):  # up to the next candidate that is kept
            before = gone + np.cumsum(self.probes[first:], axis=0) - self.probes[first:]
            rest = own[first:] + (before * self.probes[first:]).sum(axis=1)
            for i, effect in known.items():
                if i >= first:
                    rest[i - first] = effect
            kept = np.flatnonzero(rest >= threshold)
            size = kept[0] + 1 if len(kept) else len(rest)
            effects[first : first + size] = rest[:size]
            gone, first = before[size - 1], first + size
        return effects

    def sums(self, members: slice, effects: Floats, removed: NDArray[np.bool_]) -> Floats:
        """Return the change of the loss when some of a run's members are removed, ``[row]``.

        Args:
            members: consecutive candidates.
            effects: what is expected when they are removed one after another, ``[member]``.
            removed: which of them are, ``[row, member]``.
        """
        probes, weights = self.probes[members], removed.astype(float)
        before = np.cumsum(probes, axis=0) - probes
        alone = effects - (probes * before).sum(axis=1) - np.square(probes).sum(axis=1) / 2
        return weights @ alone + np.square(weights @ probes).sum(axis=1) / 2

    def behind(self, kept: Sequence[bool]) -> Forecast:
        """Return the forecast for the candidates behind the first ones, which were decided so."""
        count = len(kept)
        gone = self.gone + self.probes[:count][~np.array(kept, dtype=bool)].sum(axis=0)
        rest = (part[count:] for part in (self.bend, self.doubt))
        return Forecast(self.slopes[count:], self.probes[count:], gone, *rest)
