"""A memo of tensors that can be recomputed, within a budget of bytes.

Passes ask for much the same items over and over. If these do not all fit, evicting the least recently
used item would evict each one just before it is needed again. So everything that the last round asked
for stays, and a new item that does not fit beside it is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from pahq_plugin.engines.incremental.positions import Positions


class Sized(Protocol):
    """Anything that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Memo(Generic[Item]):
    """Items by key, as many as fit.

    Attributes:
        budget: bytes that the items may take together.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()  # with the round of use
        self._bytes = 0
        self._round = 0

    def next_round(self) -> None:
        """Begin a round; items last used before the previous round may be evicted from now on."""
        self._round += 1

    def get(self, key: Hashable) -> Item | None:
        """Return the item of that key, or ``None``."""
        if key not in self._items:
            return None
        item = self._items[key][0]
        self._items[key] = item, self._round
        self._items.move_to_end(key)
        return item

    def put(self, key: Hashable, item: Item) -> None:
        """Keep ``item`` if it fits after evicting items that were not used recently."""
        self.drop(key)
        while self._items and self._bytes + item.nbytes > self.budget:
            oldest, (_, used) = next(iter(self._items.items()))
            if used >= self._round - 1:
                return
            self.drop(oldest)
        if self._bytes + item.nbytes <= self.budget:
            self._items[key] = item, self._round
            self._bytes += item.nbytes

    def drop(self, key: Hashable) -> None:
        """Forget the item of that key."""
        found = self._items.pop(key, None)
        if found is not None:
            self._bytes -= found[0].nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return self._bytes


@dataclass(frozen=True)
class Held:
    """The present input of one destination, or projections of it, at some positions.

    Attributes:
        positions: positions that are held.
        parts: ``"x"`` for its input, ``[batch, pos, d_model]``; or by letter the query, key or value
            that its head computes from it, before rotation, ``[batch, pos, d_head]``.
    """

    positions: Positions
    parts: dict[str, Tensor]

    def at(self, part: str, positions: Positions) -> Tensor:
        """Return a part at some of the held positions."""
        return positions.cut(self.parts[part], self.positions)

    def write(self, positions: Positions, parts: Mapping[str, Tensor]) -> None:
        """Overwrite the values at ``positions``, all of which are held."""
        for part, values in parts.items():
            if positions is self.positions:
                self.parts[part].copy_(values)
            else:
                self.parts[part].index_copy_(1, positions.within(self.positions), values)

    def add(self, positions: Positions, some: Tensor | None, part: str, term: Tensor) -> None:
        """Add a term ``[batch, pos, d]`` to a part at ``positions``, all of which are held, or at those
        of them that ``some`` indexes."""
        x = self.parts[part]
        if positions is self.positions and some is None:
            x += term
            return
        at = positions.within(self.positions)
        x.index_add_(1, at if some is None else at[some], term.expand(len(x), -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Versioned:
    """Tensors by name, computed from a version of something that changes.

    Either the residual stream that destinations start from, ``"x" [batch, pos, d_model]``; or the
    present hidden layer of an MLP before its activation, by weight ``[1, n, d_mlp]``.
    """

    entries: dict[str, Tensor]
    version: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())
