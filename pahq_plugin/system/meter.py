"""Measure the memory use of a process or GPU, and name the processor."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes of the GPU's allocator, or of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class Memory:
    """Peak bytes during a block of work, above those in use before it."""

    above: int = 0


@contextmanager
def memory_above(device: torch.device | None = None) -> Iterator[Memory]:
    """Measure the peak of this process's resident memory, or of a GPU's allocator, during the block.

    Linux can reset the recorded peak; elsewhere only what exceeds the earlier peak is seen.
    """
    memory = Memory()
    cuda = torch.cuda.is_initialized() and (device is None or device.type == "cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        with suppress(OSError):  # not Linux, or not permitted in this container
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident_peak()
    yield memory
    after = torch.cuda.max_memory_allocated(device) if cuda else _resident_peak()
    memory.above = max(0, after - before)


def _resident_peak() -> int:
    """Return the peak resident bytes, since the last reset if the system supports that."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return peak_bytes(torch.device("cpu"))
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def cpu_name() -> str:
    """Return the processor's name as Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
