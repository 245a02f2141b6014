"""Memory-mapped tensors, whose pages are loaded on access and can be released.

A released page is read again on access, so code that computes with such a tensor need not know. Only
pages that match the file may be released: pages of a private mapping (weights read from a model's
folder) lose what was written to them, pages of a shared mapping do not.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pahq_plugin.system.fingerprint import fingerprint

_MARK = "_pahq_in_file"


@dataclass(frozen=True)
class InFile:
    """Address at which a parameter was mapped, and the fingerprint of its content in the file."""

    address: int
    content: int


def read_mapped(file: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file privately, by name: the file is never written to."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def mapped_parameter(x: Tensor, content: int) -> nn.Parameter:
    """Make a parameter of a privately mapped tensor with the fingerprint ``content``."""
    parameter = nn.Parameter(x, requires_grad=False)
    setattr(parameter, _MARK, InFile(x.data_ptr(), content))
    return parameter


def is_mapped(parameter: Tensor) -> bool:
    """Return whether a parameter still uses its mapped memory, even if it was written to."""
    mark: Any = getattr(parameter, _MARK, None)
    return mark is not None and mark.address == parameter.data_ptr()


def let_go_if_unchanged(parameter: Tensor, content: int | None = None) -> bool:
    """Release the pages of a parameter if it is mapped and matches its file; return whether it does.

    ``content`` is its fingerprint, if known.
    """
    if not is_mapped(parameter):
        return False
    content = fingerprint(parameter) if content is None else content
    if content != getattr(parameter, _MARK).content:
        return False
    let_go(parameter)
    return True


def spilled(x: Tensor, folder: Path) -> Tensor:
    """Copy ``x`` to an unnamed file in ``folder``, mapped so that writes go to the file.

    The file disappears with the tensor, even if the process is killed. A full disk is an `OSError`.
    """
    if x.numel() == 0:
        return x.clone()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="pahq-", suffix=".bin") as file:
        # Reserve the disk space now: a write to a mapping on a full disk would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, x.nbytes)
        else:
            file.truncate(x.nbytes)
        copy = torch.from_file(file.name, shared=True, size=x.numel(), dtype=x.dtype)
    copy = copy.view(x.shape)
    copy.copy_(x.detach())
    let_go(copy)
    return copy


def let_go(x: Tensor) -> None:
    """Release the whole pages that a mapped tensor fills, if the system supports it."""
    advise = _advise()
    first = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (x.data_ptr() + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and last > first:
        advise(first, last - first, mmap.MADV_DONTNEED)


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Return the C library's ``madvise``; ``None`` if it cannot drop pages."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
