"""Time and memory of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.host.model import unsplit
from pahq_plugin.result import Stats

FORWARDS = 3


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
