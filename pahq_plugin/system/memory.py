"""Memory of the process: when it is short, and how the C library gives back what is freed."""

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
"""What torch's allocator, the system and CUDA's libraries say."""


TIDY_BYTES, KEPT_BYTES = 2**17, 2**26
"""What the C library may keep of freed memory under a budget; and otherwise, the most that glibc would
come to by itself."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the host's memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES)
    )


def release_unused() -> None:
    """Let the C library give memory back that has been freed.

    glibc keeps the blocks of a few MiB that passes make and free, in holes between longer-lived ones:
    the process would take twice what is in use.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def tidy_heap() -> Iterator[None]:
    """Have the C library give freed memory back at once, inside the ``with`` block.

    By default glibc learns from large blocks that are freed to keep as much as 64 MiB of them.
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
    """A function of glibc; ``None`` where the C library has no such thing."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows
        return None


@contextmanager
def memory_shortage_named() -> Iterator[None]:
    """
    Raises:
        ModelError: memory ran out inside, and not where a smaller pass helps.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"memory ran out ({one_line(error) or type(error).__name__}); pass a smaller batch_size, "
            "fewer prompts, or max_memory; a search with a checkpoint goes on from it"
        ) from error
