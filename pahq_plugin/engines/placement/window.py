"""Items that are loaded into memory when used; the least recently used are evicted first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pahq_plugin.system.mapped import let_go, spilled


class Item(Protocol):
    """Something that can be in memory or away."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        ...

    def bring(self) -> None:
        """Load it into memory."""
        ...

    def stow(self) -> None:
        """Free its memory."""
        ...


class Window:
    """Items in memory, as many as there is room for.

    Args:
        room: bytes. A larger item is in memory by itself.

    Attributes:
        brought: bytes loaded into memory so far.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._here: OrderedDict[Item, None] = OrderedDict()
        self._bytes = 0
        self.brought = 0

    def use(self, item: Item) -> None:
        """Load ``item`` into memory; it stays until others need its room."""
        if item in self._here:
            self._here.move_to_end(item)
            return
        while self._here and self._bytes + item.nbytes > self._room:
            oldest, _ = self._here.popitem(last=False)
            self._bytes -= oldest.nbytes
            oldest.stow()
        item.bring()
        self._here[item] = None
        self._bytes += item.nbytes
        self.brought += item.nbytes

    def clear(self) -> None:
        """Stow everything."""
        while self._here:
            item, _ = self._here.popitem()
            item.stow()
        self._bytes = 0


class Pages:
    """Tensors in files, which are loaded when touched.

    Args:
        tensors: memory-mapped tensors; those with a private mapping are unchanged from their files.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self.nbytes = sum(x.nbytes for x in self._tensors)

    def bring(self) -> None:
        """See `Item`."""

    def stow(self) -> None:
        """See `Item`."""
        for x in self._tensors:
            let_go(x)


class Spilled(Pages):
    """A cached tensor in an unnamed file.

    Attributes:
        here: the tensor; writing to it changes the file.
    """

    def __init__(self, x: Tensor, folder: Path) -> None:
        self.here = spilled(x, folder)
        super().__init__([self.here])


class Lent:
    """Parameters that are copied to a device while they are used, and empty otherwise.

    Args:
        parameters: those on a GPU move to pinned host memory; others stay where they are, in host
            memory or mapped from a file. Each stays the same object.
        device: device that computes the products.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        self._device = device
        self._homes = [(p, on_host(p.data), p.device) for p in parameters]
        self.nbytes = sum(x.nbytes for _, x, _ in self._homes)
        self.stow()

    @torch.inference_mode(False)
    def bring(self) -> None:
        """See `Item`."""
        for parameter, home, _ in self._homes:
            parameter.data = home.to(self._device, non_blocking=True, copy=True)

    def stow(self) -> None:
        """See `Item`."""
        for parameter, home, _ in self._homes:
            parameter.data = home.new_empty(0, device=self._device)

    def give_back(self) -> None:
        """Put the parameters back on their original device."""
        for parameter, home, device in self._homes:
            parameter.data = home.to(device)


class Copied:
    """A cached tensor in host memory that is copied to its device while it is used, and written back.

    Attributes:
        here: the tensor on the device; empty while it is away.
    """

    def __init__(self, x: Tensor) -> None:
        self._home, self._device = on_host(x.clone()), x.device
        self.nbytes = x.nbytes
        self.here = x.new_empty(0)

    def bring(self) -> None:
        """See `Item`."""
        self.here = self._home.to(self._device, non_blocking=True, copy=True)

    @torch.inference_mode()
    def stow(self) -> None:
        """See `Item`."""
        self._home.copy_(self.here)
        self.here = self.here.new_empty(0)


def on_host(x: Tensor) -> Tensor:
    """Return ``x`` in host memory, pinned if it comes from a GPU."""
    return x.to("cpu").pin_memory() if x.is_cuda else x


class Shelf(Sequence[Tensor]):
    """A sequence of cached tensors that are in memory only while they are used.

    Args:
        window: the window that holds them.
        put: wraps a tensor in an item.
        tensors: initial tensors, taken one at a time.
    """

    def __init__(
        self,
        window: Window,
        put: Callable[[Tensor], Spilled | Copied],
        tensors: Iterable[Tensor] = (),
    ) -> None:
        self._window, self._put = window, put
        self._items: list[Spilled | Copied] = []
        for x in tensors:
            self.append(x)

    def append(self, x: Tensor) -> None:
        """Add a tensor, and move it out of memory."""
        self._items.append(self._put(x))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        item = self._items[index]
        self._window.use(item)
        return item.here

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(item.nbytes for item in self._items)
