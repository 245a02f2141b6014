"""The global random generators, which the host and TransformerLens draw from: kept, and seeded.

Threads share these generators. What is kept is put back by whoever leaves last, and who draws what has
to be the same every time draws alone.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

_lock = threading.RLock()


_kept: list[_State] = []
"""What is to be put back, the oldest first: of ``with`` blocks around each other, or of threads."""


class _State:
    """Of Python's and torch's generators, those of GPUs among them."""

    def __init__(self) -> None:
        self.values: tuple[Any, ...] = (
            random.getstate(), torch.get_rng_state(), torch.cuda.get_rng_state_all()
        )  # fmt: skip

    def put_back(self) -> None:
        python, cpu, gpus = self.values
        random.setstate(python)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(gpus)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave Python's and torch's generators as they were before the ``with`` block."""
    own = None
    try:
        with _lock:
            own = _State()
            _kept.append(own)
        yield
    finally:
        with _lock:
            if own in _kept:
                _leave(own)


def _leave(own: _State) -> None:
    place = _kept.index(own)
    del _kept[place]
    if place == len(_kept):
        own.put_back()
    else:  # another thread came later and still draws: it puts back what was there before both
        _kept[place].values = own.values


@contextmanager
def seeded(seed: int, *, alone: bool = False) -> Iterator[None]:
    """Seed Python's and torch's generators for the ``with`` block; then put them back.

    Args:
        seed: of both.
        alone: other threads wait with their own seeds until this block ends.
    """
    with _lock if alone else nullcontext(), random_state_kept():
        with _lock:
            random.seed(seed)
            torch.manual_seed(seed)
        yield


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
