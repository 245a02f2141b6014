"""What a state remembers of its present: kept only as long as it fits (`pahq_plugin.engine.memo`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pahq_plugin.positions import Positions


@dataclass(frozen=True)
class Held:
    """Something of one destination's present, at some positions.

    Attributes:
        positions: positions that are held.
        parts: ``"x"`` for its input, ``[batch, pos, d_model]``; or by letter the query, key or value
            that its head makes of it, before rotation, ``[batch, pos, d_head]``.
    """

    positions: Positions
    parts: dict[str, Tensor]

    def at(self, part: str, positions: Positions) -> Tensor:
        """A part at some of the positions."""
        return positions.cut(self.parts[part], self.positions)

    def write(self, positions: Positions, parts: Mapping[str, Tensor]) -> None:
        """Put newer values in their place, where ``positions`` are held."""
        at = positions.within(self.positions)
        for part, values in parts.items():
            self.parts[part].index_copy_(1, at, values)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Base:
    """A residual stream that destinations start from, ``[batch, pos, d_model]``."""

    x: Tensor
    version: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.x.nbytes


@dataclass(frozen=True)
class Hidden:
    """The present hidden layer of an MLP before its activation, by weight ``[1, n, d_mlp]``."""

    entries: dict[str, Tensor]
    version: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())
