"""Time and memory of a run, and what it ran on."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from pahq_plugin.heap import release_unused, tidy_heap
from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.host.lending import unsplit
from pahq_plugin.host.model import weight_parameters
from pahq_plugin.mapped import is_mapped
from pahq_plugin.notices import warn
from pahq_plugin.placement.place import Planned
from pahq_plugin.placement.plan import Plan, units_of
from pahq_plugin.result import Stats

FORWARDS = 3

OVER = 1.05
"""How far above a budget of memory a search may be without a warning."""


@contextmanager
def measured(stats: Stats, device: torch.device) -> Iterator[None]:
    """Enter the seconds and the peak memory of the ``with`` block into ``stats``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    stats.seconds = time.perf_counter() - start
    stats.peak_bytes = peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """Peak of the GPU's allocator, or of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class Memory:
    """Bytes that a block of work took at its peak above what there was before it."""

    above: int = 0


@contextmanager
def memory_above(device: torch.device | None = None) -> Iterator[Memory]:
    """Measure the peak of this process's resident memory during the ``with`` block.

    Linux can be told to forget the earlier peak; elsewhere only what exceeds that is seen. On a GPU
    it is the peak of the allocator.
    """
    memory = Memory()
    cuda = torch.cuda.is_initialized() and (device is None or device.type == "cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        _forget_peak()
        before = _resident_peak()
    yield memory
    after = torch.cuda.max_memory_allocated(device) if cuda else _resident_peak()
    memory.above = max(0, after - before)


@contextmanager
def held_to(
    plan: Plan, model: PatchableModel, placement: Planned, device: torch.device, stats: Stats
) -> Iterator[None]:
    """Enter into ``stats`` what memory the ``with`` block takes, and say so where that is more than 5 %
    above the budget.

    Args:
        plan: the budget.
        model: whose weights are placed as the plan wants them.
        placement: by which they come and go.
        device: where the budget holds.
        stats: written to.
    """
    away = {p for unit in units_of(model) if unit.name not in plan.stay for p in unit.parameters}
    staying = (p for _, p in weight_parameters(model) if p not in away)
    in_memory = sum(p.nbytes for p in staying if not is_mapped(p))
    before = placement.moved
    with tidy_heap():
        release_unused()
        with memory_above(device) as memory:
            yield
    peak = memory.above + in_memory
    stats.memory = {
        "max_memory": plan.max_memory,
        "peak": peak,
        "weights": plan.weights,
        "stayed": plan.staying,
        "moved": placement.moved - before,
    }
    if peak > OVER * plan.max_memory:
        warn(f"the search took {peak / 1e6:,.0f} MB, more than max_memory")


def _forget_peak() -> None:
    with suppress(OSError):  # no Linux, or not allowed in this container
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident_peak() -> int:
    """Peak resident bytes, since `_forget_peak` where that is possible."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return peak_bytes(torch.device("cpu"))
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@torch.inference_mode()
def forward_seconds(model: PatchableModel, batches: list[PromptPairBatch]) -> float:
    """Median time of one plain forward of all batches, in the model's own precision, warm, and
    without the split inputs that patching needs."""
    times = []
    with unsplit(model):
        for _ in range(FORWARDS + 1):
            start = time.perf_counter()
            for batch in batches:
                model(batch.clean)
            if batches[0].clean.is_cuda:
                torch.cuda.synchronize(batches[0].clean.device)
            times.append(time.perf_counter() - start)
    return median(times[1:])


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
