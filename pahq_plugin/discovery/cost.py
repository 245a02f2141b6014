"""Time and memory of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from pahq_plugin.engines.placement.place import Planned
from pahq_plugin.engines.placement.plan import Plan, units_of
from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.host.lending import unsplit
from pahq_plugin.models.checks import weight_parameters
from pahq_plugin.results.result import Stats
from pahq_plugin.system.mapped import is_mapped
from pahq_plugin.system.memory import release_unused, tidy_heap
from pahq_plugin.system.meter import memory_above, peak_bytes
from pahq_plugin.system.warn import warn

FORWARDS = 3


OVER = 1.05
"""A search may exceed its memory budget by this factor without a warning."""


@contextmanager
def measured(stats: Stats, device: torch.device) -> Iterator[None]:
    """Record the seconds and the peak memory of the ``with`` block in ``stats``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    stats.seconds = time.perf_counter() - start
    stats.peak_bytes = peak_bytes(device)


@contextmanager
def held_to(
    plan: Plan, model: PatchableModel, placement: Planned, device: torch.device, stats: Stats
) -> Iterator[None]:
    """Record in ``stats`` the memory that the ``with`` block takes; warn if it exceeds the budget by
    more than 5 %.

    Args:
        plan: the budget.
        model: its weights are placed according to the plan.
        placement: moves them in and out of memory.
        device: the device that the budget applies to.
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


@torch.inference_mode()
def forward_seconds(model: PatchableModel, batches: Sequence[PromptPairBatch]) -> float:
    """Measure the median time of one plain forward pass over all batches, after a warm-up, in the
    model's own precision and without the split inputs that patching needs."""
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
