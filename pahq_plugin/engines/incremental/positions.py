"""Sets of token positions, each created once, with the index maps between them.

A pass moves activations from the positions at which they are known to those at which they are wanted,
thousands of times between the same few sets. Equal sets are the same object, so they are compared with
``is``, and the map between two sets is computed once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Positions:
    """An ascending set of positions; created by `PositionSets` only.

    Attributes:
        array: the positions, ``[pos]``.
        index: the same on the model's device.
    """

    __slots__ = ("_maps", "array", "index")

    @torch.inference_mode(False)  # autograd may save the indices, see `gradients`
    def __init__(self, array: Ints, device: torch.device) -> None:
        self.array = array
        self.index = torch.from_numpy(array).to(device)
        self._maps: dict[int, tuple[Positions, Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.array)

    def inside(self, wider: Positions) -> bool:
        """Return whether every position of this set is in ``wider``."""
        return wider is self or self._map(wider)[1] is None

    def cut(self, x: Tensor, have: Positions, axis: int = -2) -> Tensor:
        """Select the positions of this set from ``x``, which is known along ``axis`` at ``have``, a
        superset."""
        return x if have is self else x.index_select(axis, self._map(have)[0])

    def shared(self, have: Positions) -> tuple[Tensor | None, Tensor | None]:
        """Locate the positions that are in both sets: their indices in ``have`` (``None`` if the sets
        are equal), and in this set (``None`` for all of it)."""
        return (None, None) if have is self else self._map(have)

    def within(self, wider: Positions) -> Tensor:
        """Return the indices of this set's positions in ``wider``, a superset."""
        return self._map(wider)[0]

    @torch.inference_mode(False)
    def _map(self, other: Positions) -> tuple[Tensor, Tensor | None]:
        """Return the indices of shared positions in ``other``, and in this set (``None`` for all)."""
        found = self._maps.get(id(other))
        if found is None:
            inside = np.isin(self.array, other.array, assume_unique=True)
            at = torch.from_numpy(np.searchsorted(other.array, self.array[inside]))
            known = None
            if not inside.all():
                known = torch.from_numpy(np.flatnonzero(inside)).to(self.index.device)
            found = self._maps[id(other)] = (other, at.to(self.index.device), known)
        return found[1], found[2]


class PositionSets:
    """All sets of positions that occur in one search.

    Args:
        length: number of positions of a prompt.
        device: device of the index tensors.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self._device = device
        self._known: dict[bytes, Positions] = {}
        self.all = self.of(np.ones(length, dtype=bool))

    def of(self, mask: Bools) -> Positions:
        """Return the set of positions at which ``mask [pos]`` is true."""
        key = mask.tobytes()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Positions(np.flatnonzero(mask), self._device)
        return found
