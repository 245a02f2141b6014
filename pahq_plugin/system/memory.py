"""Process memory: detect shortages, and make the C library return freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from pahq_plugin.errors import ModelError, one_line

SHORTAGES = (
    "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED", "CUDA error: out of memory",
)  # fmt: skip
"""Parts of the messages of torch's allocator, the system and CUDA's libraries."""

TIDY_BYTES, KEPT_BYTES = 2**17, 2**26
"""Freed bytes that the C library may keep under a memory budget, and otherwise (glibc's own maximum)."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a GPU or in main memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES)
    )


def release_unused() -> None:
    """Make the C library return freed memory to the system.

    glibc keeps the freed blocks of a few MiB that passes leave between longer-lived ones; the process
    would take twice the memory in use.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def tidy_heap() -> Iterator[None]:
    """Make the C library return freed memory at once, inside the ``with`` block.

    By default glibc adapts to large freed blocks and keeps up to 64 MiB.
    """
    option = _of_libc("mallopt")
    if option is None:
        yield
        return
    option(_TRIM_THRESHOLD, TIDY_BYTES)
    option(_MMAP_THRESHOLD, TIDY_BYTES)
    try:
        yield
    finally:
        option(_TRIM_THRESHOLD, KEPT_BYTES)
        option(_MMAP_THRESHOLD, KEPT_BYTES // 2)


@cache
def _of_libc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc; ``None`` if the C library lacks it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows
        return None


@contextmanager
def memory_shortage_named() -> Iterator[None]:
    """Turn a failed allocation inside the ``with`` block into a `ModelError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"memory ran out ({one_line(error) or type(error).__name__}); pass a smaller batch_size, "
            "fewer prompts, or max_memory; a search with a checkpoint goes on from it"
        ) from error
