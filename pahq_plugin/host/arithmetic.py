"""Products in the precision of their operands, whatever the application around allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

OWN = "ieee"
"""What torch calls products of FP32 that are FP32."""


_LOCK = threading.Lock()
_inside = 0
_before = ExitStack()
"""Switches of FP32 products are the process's: the first thread to come in sets them, the last one to
leave puts them back."""


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Inside the ``with`` block autocast is off, and FP32 products take no short cut (TF32, BF16), in
    all threads."""
    global _inside
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        with _LOCK:
            if _inside == 0:
                _take_no_short_cut(_before)
            _inside += 1
        try:
            yield
        finally:
            with _LOCK:
                _inside -= 1
                if _inside == 0:
                    _before.close()


def _take_no_short_cut(stack: ExitStack) -> None:
    """Until ``stack`` is closed."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9
        for switch in (matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
            _set(switch, "fp32_precision", OWN, stack)
    else:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")


def _set(switch: Any, name: str, value: str, stack: ExitStack) -> None:
    """Set an attribute until ``stack`` is closed."""
    stack.callback(setattr, switch, name, getattr(switch, name))
    setattr(switch, name, value)
