"""Tensors that lie in files and are mapped into memory: pages come when they are touched, and can go.

A page that goes is read again when it is touched, so nothing that computes with such a tensor has to
know. Only pages that are as they are in the file may go: those of a private mapping (weights read from
a model's folder) lose what was written to them, those of a shared one do not.
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
    """Where the contents of a parameter were mapped, and their fingerprint in the file."""

    address: int
    content: int


def read_mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, mapped privately: the file is never written to.

    Raises:
        OSError: it cannot be read.
        safetensors.SafetensorError: it is no safetensors file.
    """
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def mapped_parameter(x: Tensor, content: int) -> nn.Parameter:
    """A parameter of a privately mapped tensor, whose fingerprint is ``content``."""
    parameter = nn.Parameter(x, requires_grad=False)
    setattr(parameter, _MARK, InFile(x.data_ptr(), content))
    return parameter


def is_mapped(parameter: Tensor) -> bool:
    """Whether a parameter has the memory that was mapped, though it may have been written to."""
    mark: Any = getattr(parameter, _MARK, None)
    return mark is not None and mark.address == parameter.data_ptr()


def let_go_if_unchanged(parameter: Tensor, content: int | None = None) -> bool:
    """Let go of the pages of a mapped parameter, if they are as in its file.

    Args:
        parameter: any parameter.
        content: its fingerprint, if it is known.

    Returns:
        Whether it is mapped and as in its file.
    """
    if not is_mapped(parameter):
        return False
    content = fingerprint(parameter) if content is None else content
    if content != getattr(parameter, _MARK).content:
        return False
    let_go(parameter)
    return True


def spilled(x: Tensor, folder: Path) -> Tensor:
    """A copy of ``x`` in a file without a name in ``folder``, mapped such that writing changes the file.

    The file is gone when the tensor is, also when the process is killed.

    Raises:
        OSError: the disk is full.
    """
    if x.numel() == 0:
        return x.clone()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="pahq-", suffix=".bin") as file:
        _reserve(file, x.nbytes)
        copy = torch.from_file(file.name, shared=True, size=x.numel(), dtype=x.dtype)
    copy = copy.view(x.shape)
    copy.copy_(x.detach())
    let_go(copy)
    return copy


def _reserve(file: Any, nbytes: int) -> None:
    """Take the room on the disk now: a mapping that finds the disk full ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)
    else:
        file.truncate(nbytes)


def let_go(x: Tensor) -> None:
    """Let go of the whole pages that a mapped tensor fills; nothing happens where the system cannot."""
    advise = _advise()
    first = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (x.data_ptr() + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and last > first:
        advise(first, last - first, mmap.MADV_DONTNEED)


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    """``madvise`` of the C library; ``None`` where there is none that drops pages."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
