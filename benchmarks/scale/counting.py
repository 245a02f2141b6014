"""What a block of work asks of the machine, counted exactly: operations, products, bytes written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass
class Counts:
    """
    Attributes:
        operations: PyTorch operations but for views.
        products: multiply-adds of matrix products.
        int8_products: those of them that ran on 8-bit integers.
        bytes: of the results of all operations.
    """

    operations: int = 0
    products: int = 0
    int8_products: int = 0
    bytes: int = 0

    def record(self) -> dict[str, int]:
        """As a JSON object."""
        return asdict(self)


class Counting(TorchDispatchMode):
    """Counts every operation of the ``with`` block, which takes longer for it.

    Attributes:
        counts: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func.is_view or func is aten._unsafe_view.default:
            return out
        self.counts.operations += 1
        self.counts.bytes += sum(x.nbytes for x in _tensors(out))
        products = _products(func.overloadpacket, args)
        self.counts.products += products
        if func.overloadpacket is aten._int_mm:
            self.counts.int8_products += products
        return out


def _tensors(out: Any) -> Iterator[Tensor]:
    for one in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(one, Tensor):
            yield one


def _products(operation: Any, args: tuple[Any, ...]) -> int:
    """Multiply-adds of an operation; 0 for one that is no matrix product."""
    if operation in (aten.mm, aten._int_mm, aten.bmm):
        x, y = args[0], args[1]
    elif operation in (aten.addmm, aten.baddbmm):
        x, y = args[1], args[2]
    else:
        return 0
    return x.numel() * y.shape[-1]
