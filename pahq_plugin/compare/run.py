"""Run a plan: first the searches, then the judging of their circuits, several processes at a time.

Each piece of work has its own process, forked from a server that has imported everything and run
nothing, so that time and memory are those of the piece alone. Finished work in the folder is not
repeated: a comparison that was killed continues when it is started again.

====================  ==============================================================================
in the folder         holds
====================  ==============================================================================
``plan.json``         the plan, as last run
``found/NAME/``       one search: ``result.json``, ``run.json``, ``search.json``
``judged/NAME.json``  the circuits of one method on one problem and seed, on held-out prompts
====================  ==============================================================================
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from pahq_plugin.compare.baselines import EXACT, get_baseline
from pahq_plugin.compare.plan import Plan, Search
from pahq_plugin.compare.work import SEARCH_FILES, Judgement, find, judge
from pahq_plugin.errors import ConfigError, MetricError, ModelError, PahqError, PahqWarning, one_line
from pahq_plugin.results.files import RESULT_FILE, read_record
from pahq_plugin.system.files import write_text
from pahq_plugin.system.launch import ALONE
from pahq_plugin.system.progress import progress_bar

REFUSALS = (ConfigError, ModelError, MetricError)
"""Errors of a method that does not support a problem; any other error means that something broke."""

WARNINGS = 5
"""The most warnings of one piece of work that are reported."""

PLAN_FILE = "plan.json"
PRELOADED = ("pahq_plugin.discovery.discover", "pahq_plugin.problems.load", "pahq_plugin.compare.work")


@dataclass(frozen=True)
class Work:
    """One piece of work with a readable name; ``run`` is called in its process and must be picklable."""

    label: str
    run: Callable[[], None]


@dataclass
class Outcome:
    """What was refused as not supported, what broke, and warnings, each by the label of the work."""

    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warned: dict[str, list[str]] = field(default_factory=dict)


def run_plan(
    plan: Plan,
    folder: Path,
    processes: int = 1,
    threads: int = 1,
    progress: bool = True,
    world: Any = ALONE,
) -> Outcome:
    """Run the unfinished work of a plan; what is not in the outcome is in the folder.

    Args:
        plan: what to compare.
        folder: folder of the comparison.
        processes: pieces of work at a time; with several, times include the load of the others.
        threads: threads of each process.
        progress: show a bar when a terminal is attached.
        world: a `pahq_plugin.system.processes.World` of processes that share the work and the folder.

    Raises:
        ConfigError: ``folder`` is a file, or ``processes`` or ``threads`` is below 1.
        ResultError: the result of a search is damaged.
    """
    if processes < 1 or threads < 1:
        raise ConfigError(f"processes={processes} and threads={threads} must both be at least 1")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the comparison")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PLAN_FILE, json.dumps(plan.record(), indent=1) + "\n")
    outcome, mine = Outcome(), slice(world.rank, None, world.size)
    found, judged = folder / "found", folder / "judged"
    searches = [
        Work(search.label, partial(find, search, found, threads))
        for search in plan.searches[mine]
        if not is_found(search, found)
    ]
    run_work("searches", searches, processes, outcome, progress)
    world.collect(None)  # judge circuits only after all searches
    judgements = [
        Work(judgement.label, partial(judge, judgement, found, judged, threads))
        for judgement in judgements_of(plan, found)[mine]
        if not (judged / judgement.file).is_file()
    ]
    run_work("circuits judged", judgements, processes, outcome, progress)
    total = Outcome()
    for one in world.collect(outcome):
        total.refused |= one.refused
        total.failed |= one.failed
        total.warned |= one.warned
    return total


def is_found(search: Search, found: Path) -> bool:
    """Return whether all files of a search's result exist."""
    return all((found / search.folder / name).is_file() for name in SEARCH_FILES)


def judgements_of(plan: Plan, found: Path) -> list[Judgement]:
    """Group the finished searches of each problem, seed and method into one judgement."""
    groups: dict[tuple[Any, ...], list[Search]] = {}
    for search in plan.searches:
        if is_found(search, found):
            settings = (search.problem, search.seed, search.batches, search.ablation)
            groups.setdefault((*settings, search.method), []).append(search)
    return [
        Judgement(
            tuple(searches),
            () if get_baseline(key[-1]).sweeps else _sizes(groups.get((*key[:-1], EXACT), []), found),
            plan.test_batches,
            _evidence(searches, found),
        )
        for key, searches in groups.items()
    ]


def _sizes(exact: Iterable[Search], found: Path) -> tuple[tuple[float, int], ...]:
    """Return (threshold, circuit size) of the FP32 searches."""
    sizes = []
    for search in exact:
        decisions = read_record(found / search.folder / RESULT_FILE)["decisions"]
        assert search.threshold is not None  # it sweeps
        sizes.append((search.threshold, sum(d["kept"] for d in decisions)))
    return tuple(sizes)


def _evidence(searches: Iterable[Search], found: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for search in searches:
        digest.update((found / search.folder / RESULT_FILE).read_bytes())
    return digest.hexdigest()


def run_work(title: str, work: Sequence[Work], processes: int, outcome: Outcome, progress: bool) -> None:
    """Run pieces of work, each in its own process; record refusals and failures in ``outcome``."""
    if not work:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    waiting, running = deque(work), {}
    done = 0
    with progress_bar(title, len(work), progress) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    piece = waiting.popleft()
                    receiver, process = _start(context, piece)
                    running[process.sentinel] = piece, process, receiver
                    bar(done, piece.label)
                for sentinel in wait(list(running)):
                    piece, process, receiver = running.pop(sentinel)
                    _close(piece, process, receiver, outcome)
                    done += 1
                    bar(done, piece.label)
        finally:
            for _, process, _ in running.values():
                process.terminate()


def _start(context: Any, piece: Work) -> tuple[Connection, ForkServerProcess]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(piece.run, sender), daemon=True)
    process.start()
    sender.close()
    return receiver, process


def _close(piece: Work, process: Any, receiver: Connection, outcome: Outcome) -> None:
    """Join a process and record how it ended."""
    process.join()
    refused, reason, warned = False, f"its process ended with exit code {process.exitcode}", []
    with receiver, suppress(EOFError):
        if receiver.poll():
            refused, reason, warned = receiver.recv()
    if warned:
        outcome.warned[piece.label] = warned
    if refused:
        outcome.refused[piece.label] = reason
    elif process.exitcode != 0:
        outcome.failed[piece.label] = reason


def _in_process(run: Callable[[], None], sender: Connection) -> None:
    """Run a piece of work quietly, and send the parent one line about an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # the host draws a progress bar for every loop
    os.dup2(nowhere, 2)
    code, refused, reason = 0, False, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PahqWarning)
        try:
            run()
        except PahqError as error:
            refused, reason = isinstance(error, REFUSALS), one_line(error)
            code = 0 if refused else 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {one_line(error)} ({where.name}, line {where.lineno})"
            code = 1
    told = list(dict.fromkeys(one_line(warning.message) for warning in caught))
    sender.send((refused, reason, told[:WARNINGS]))  # short: read only after the process has ended
    sys.exit(code)
