"""A memo of tensors that can be computed again, kept within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Memo(Generic[Item]):
    """Least recently used items go first when the budget is exceeded.

    Attributes:
        budget: bytes that the items may take together; the newest item always stays.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._items: OrderedDict[Hashable, Item] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Item | None:
        """The item of that key, if it is still there."""
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def put(self, key: Hashable, item: Item) -> None:
        """Keep ``item``, and drop the oldest ones beyond the budget."""
        self.drop(key)
        self._items[key] = item
        self._bytes += item.nbytes
        while self._bytes > self.budget and len(self._items) > 1:
            _, old = self._items.popitem(last=False)
            self._bytes -= old.nbytes

    def drop(self, key: Hashable) -> None:
        """Forget the item of that key."""
        item = self._items.pop(key, None)
        if item is not None:
            self._bytes -= item.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the items take."""
        return self._bytes
