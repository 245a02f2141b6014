"""One shape measured: seconds of whole searches, what they ask of the machine, and their memory.

1. `timed` looks for the threshold at which the wanted number of edges per node is kept, then runs both
   methods in turn.
2. `counted` runs one search more, slowed down by counting; its memory is that above one plain forward.
3. Each of the two has a process of its own (`alone`), forked from a server that has the imports done.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from auto_circuit.data import PromptDataLoader
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from benchmarks.models import Case, load
from benchmarks.scale.counting import Counting
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.models.checks import model_device
from pahq_plugin.precision.config import default_precision
from pahq_plugin.precision.formats import get_format
from pahq_plugin.system.meter import memory_above

METHODS = ("acdc", "pahq")
MOST_TRIES = 5
SPARSE = 0.1
"""A threshold that removes nearly all."""

NEAR = 0.2
"""A threshold is good enough if the edges kept are off by no more than this part."""

TINY = Case("tiny", 1e-2, layers=1, heads=2, width=16, d_mlp=32, vocabulary=50, prompts=2, length=4)
"""Run before memory is measured: the first search loads code."""

Value = TypeVar("Value")


class MeasureError(RuntimeError):
    """A measurement that did not come to its end."""


def alone(function: Callable[..., Value], *arguments: Any) -> Value:
    """``function(*arguments)`` in a process that does nothing else.

    Raises:
        MeasureError: the process died.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.scale.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            name = getattr(arguments[0], "name", arguments[0])
            raise MeasureError(
                f"the process that measured {name} died, perhaps for lack of memory; free some, or "
                "leave out the larger shapes (--quick)"
            ) from error


def search(case: Case, method: str, model: PatchableModel, loader: PromptDataLoader) -> pahq.Discovery:
    """One whole search; ``pahq`` screens in the default precision of the device."""
    precision = default_precision(model_device(model)) if method == "pahq" else None
    return pahq.discover(
        model, loader, method=method, precision=precision, engine="incremental",
        threshold=case.threshold, progress=False,
    )  # fmt: skip


def cpu_search(
    case: Case, method: str, model: PatchableModel, loader: PromptDataLoader
) -> dict[str, float]:
    """Seconds of one search by the clock and of this process's CPU time; other processes on the machine
    lengthen the second less."""
    clock, cpu = time.perf_counter(), time.process_time()
    seconds = search(case, method, model, loader).stats.seconds
    busy = (time.process_time() - cpu) / (time.perf_counter() - clock)
    return {"seconds": seconds, "cpu_seconds": seconds * busy}


def calibrated(
    case: Case, per_node: float, model: PatchableModel, loader: PromptDataLoader
) -> tuple[Case, pahq.Discovery]:
    """The case at a threshold that keeps about ``per_node`` edges for each node, and its search.

    Its own threshold is tried first. The number of edges kept falls as the threshold rises: bisected on
    a logarithmic scale.
    """
    wanted, low, high = per_node * len(model.srcs), 0.0, 0.0
    best = None
    for _ in range(MOST_TRIES):
        found = search(case, "acdc", model, loader)
        kept = len(found.circuit)
        if best is None or abs(kept - wanted) < abs(len(best[1].circuit) - wanted):
            best = case, found
        if abs(kept - wanted) <= NEAR * wanted:
            break
        low, high = (case.threshold, high) if kept > wanted else (low, case.threshold)
        step = (low * high) ** 0.5 if low and high else case.threshold * (2.5 if kept > wanted else 0.4)
        case = replace(case, threshold=step)
    assert best is not None
    return best


def timed(case: Case, per_node: float, repeat: int) -> dict[str, Any]:
    """Both methods in turn, ``repeat`` times, warm."""
    torch.set_num_threads(1)
    model, loader = load(case)
    case, found = calibrated(case, per_node, model, loader)
    prompts = list(islice(loader, 1))
    turns = []
    cpu_search(case, "pahq", *load(TINY))
    for _ in range(repeat):
        turn: dict[str, Any] = {method: cpu_search(case, method, model, loader) for method in METHODS}
        turns.append(turn | {"plain_forward": forward_seconds(model, prompts)})
    return {"threshold": case.threshold, "kept": len(found.circuit), "turns": turns}


def counted(case: Case, method: str) -> dict[str, Any]:
    """What one search asks of the machine, and its memory above one plain forward."""
    torch.set_num_threads(1)
    tiny, few = load(TINY)
    with Counting():
        search(TINY, method, tiny, few)
    model, loader = load(case)
    forward_seconds(model, list(islice(loader, 1)))
    with memory_above() as memory, Counting() as counting:
        found = search(case, method, model, loader)
    counts = counting.counts.record() | {"rows": found.stats.evaluations}
    return {"counts": counts, "memory_above": memory.above, "re_evaluations": found.stats.re_evaluations}


def edge_bytes(smaller: Case, larger: Case) -> dict[str, float]:
    """Bytes of Python objects for each edge that the larger case has more: of the host's model, and of a
    search at its peak, of a threshold that removes nearly all."""
    torch.set_num_threads(1)
    search(TINY, "acdc", *load(TINY))
    (edges, model, peak), (more, larger_model, larger_peak) = map(_objects, (smaller, larger))
    return {
        "model": (larger_model - model) / (more - edges),
        "search": (larger_peak - peak) / (more - edges),
    }


def _objects(case: Case) -> tuple[int, int, int]:
    """Edges, and bytes of Python objects of the model and of a search above that."""
    tracemalloc.start()
    model, loader = load(case)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    search(replace(case, threshold=SPARSE), "acdc", model, loader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return len(model.edges), held, peak - held


def screening_bits() -> tuple[int, int]:
    """Bits of the second copies of head and MLP weights that ``pahq`` makes on a CPU."""
    precision = default_precision(torch.device("cpu"))
    formats = get_format(precision.low), get_format(precision.mlp)
    head, mlp = (each.bits if each.is_low else 0 for each in formats)
    return head, mlp
