"""The checkpoint of a run that measures the effect of every edge alone.

Its only tensor holds the effects so far, in the order in which they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pahq_plugin.choices import CHECKPOINT_EVERY
from pahq_plugin.discovery.saved_progress import Packed, SavedProgress, Tensors
from pahq_plugin.errors import CheckpointError


@dataclass(frozen=True)
class Measured:
    """How far a run is.

    Attributes:
        effects: effects of the first edges: all in order, then again those that are refined.
        evaluations: rows run so far.
    """

    effects: tuple[float, ...] = ()
    evaluations: int = 0


class EffectsFile(SavedProgress[Measured]):
    """The checkpoint of one run.

    Args:
        path: the file; its folder is created if needed.
        identity: the identity of the run, as JSON values; a file of another run is refused.
        most: number of effects of a complete run.
        every: seconds between two writes.
    """

    schema = "pahq-effects/1"

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        most: int,
        every: float = CHECKPOINT_EVERY,
    ) -> None:
        super().__init__(path, identity, every)
        self._most = most

    def packed(self, progress: Measured) -> Packed:
        """See `SavedProgress.packed`."""
        effects = np.array(progress.effects, dtype=np.float64)
        return {"effects": effects}, {"evaluations": progress.evaluations}

    def unpacked(self, content: Packed) -> Measured:
        """See `SavedProgress.unpacked`."""
        tensors, state = content
        if len(tensors["effects"]) > self._most:
            raise CheckpointError(f"checkpoint {self.path} is damaged: its effects do not fit the run")
        return Measured(tuple(tensors["effects"].tolist()), state["evaluations"])

    def is_whole(self, state: dict[str, Any], tensors: Tensors) -> bool:
        """See `SavedProgress.is_whole`."""
        if state.keys() != {"evaluations"} or tensors.keys() != {"effects"}:
            return False
        effects = tensors["effects"]
        is_vector = effects.dtype == np.float64 and effects.ndim == 1
        counted = type(state["evaluations"]) is int and state["evaluations"] >= 0
        return counted and is_vector and bool(np.isfinite(effects).all())
