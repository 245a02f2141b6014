"""Products in the precision of their operands, whatever the application around allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

OWN = "ieee"
"""What torch calls products of FP32 that are FP32."""


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Inside the ``with`` block autocast is off, and FP32 products take no short cut (TF32, BF16)."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        matmul = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):  # torch 2.9
            for switch in (matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
                _set(switch, "fp32_precision", OWN, stack)
        else:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


def _set(switch: Any, name: str, value: str, stack: ExitStack) -> None:
    """Set an attribute until ``stack`` ends."""
    stack.callback(setattr, switch, name, getattr(switch, name))
    setattr(switch, name, value)
