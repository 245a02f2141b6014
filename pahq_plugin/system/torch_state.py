"""Save, seed and restore the global random generators that the host and TransformerLens draw from.

Threads share these generators. The thread that leaves last restores the saved state; a thread that needs
reproducible draws holds the generators alone.
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
"""States to restore, oldest first: of nested ``with`` blocks or of several threads."""


class _State:
    """State of Python's and torch's generators, including those of GPUs."""

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
    """Restore Python's and torch's generators after the ``with`` block."""
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
    else:  # a later thread still draws: it restores the state from before both
        _kept[place].values = own.values


@contextmanager
def seeded(seed: int, *, alone: bool = False) -> Iterator[None]:
    """Seed Python's and torch's generators for the ``with`` block, then restore them.

    With ``alone``, other threads that ask to be alone wait until this block ends.
    """
    with _lock if alone else nullcontext(), random_state_kept():
        with _lock:
            random.seed(seed)
            torch.manual_seed(seed)
        yield


OWN = "ieee"
"""torch's name for matrix products in true FP32."""

_LOCK = threading.Lock()
_inside = 0
_before = ExitStack()
"""Restores the FP32 switches, which are global: the first thread to enter sets them, the last to leave
restores them."""


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Turn autocast off, and TF32 and BF16 shortcuts of FP32 products in all threads, for the block."""
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
    """Compute FP32 products in true FP32 until ``stack`` is closed."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9
        for switch in (matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = OWN
    else:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
