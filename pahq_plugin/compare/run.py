"""Runs a plan: searches first, then the judging of their circuits, several processes at a time.

Every piece of work has a process of its own, forked from a server that has imported everything and
run nothing, so that times and memory are those of the piece. What lies finished in the folder is not
done again; a sweep that was killed goes on when it is started again.

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
"""Errors that say of a method that it is not for a problem; any other means that something broke."""

WARNINGS = 5
"""Of one piece of work that are passed on."""

PLAN_FILE = "plan.json"
PRELOADED = ("pahq_plugin.discovery.discover", "pahq_plugin.problems.load", "pahq_plugin.compare.work")


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
        label: for people.
        run: what its process calls; picklable.
    """

    label: str
    run: Callable[[], None]


@dataclass
class Outcome:
    """What a sweep could not do.

    Attributes:
        refused: label to reason, of work that a method or problem does not allow.
        failed: label to reason, of work that broke.
        warned: label to warnings, of work that gave some.
    """

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
    """Run what is missing of a plan.

    Args:
        plan: what to compare.
        folder: where results are and go.
        processes: pieces of work at a time. Times are those of a machine with as many of them.
        threads: of each process.
        progress: show a bar when a terminal is attached.
        world: a `pahq_plugin.system.processes.World` whose processes, on one machine or with a folder in
            common, share the work.

    Returns:
        What was refused or failed; everything else is in the folder.

    Raises:
        ConfigError: ``folder`` is a file, or there is no process or no thread to work with.
        ResultError: the result of a search is damaged; says which.
    """
    if processes < 1 or threads < 1:
        raise ConfigError(f"processes={processes} and threads={threads} must both be at least 1")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a comparison is kept in a folder")
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
    world.collect(None)  # circuits are judged when all are found
    judgements = [
        Work(judgement.label, partial(judge, judgement, found, judged, threads))
        for judgement in judgements_of(plan, found)[mine]
        if not (judged / judgement.file).is_file()
    ]
    run_work("circuits judged", judgements, processes, outcome, progress)
    everyone = world.collect(outcome)
    return Outcome(
        {label: why for one in everyone for label, why in one.refused.items()},
        {label: why for one in everyone for label, why in one.failed.items()},
        {label: lines for one in everyone for label, lines in one.warned.items()},
    )


def is_found(search: Search, found: Path) -> bool:
    """Whether the result of a search is there, with all its files."""
    return all((found / search.folder / name).is_file() for name in SEARCH_FILES)


def judgements_of(plan: Plan, found: Path) -> list[Judgement]:
    """What there is to judge: per problem, seed and method, all searches that were done."""
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
    """Thresholds of the FP32 searches and the sizes of their circuits."""
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
    """Run pieces of work, each in a process of its own; enter into ``outcome`` what did not work."""
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
    """Take in how a process ended."""
    process.join()
    refused, reason = False, f"its process ended with exit code {process.exitcode}"
    warned: list[str] = []
    with suppress(EOFError):
        if receiver.poll():
            refused, reason, warned = receiver.recv()
    receiver.close()
    if warned:
        outcome.warned[piece.label] = warned
    if refused:
        outcome.refused[piece.label] = reason
    elif process.exitcode != 0:
        outcome.failed[piece.label] = reason


def _in_process(run: Callable[[], None], sender: Connection) -> None:
    """The body of a worker: quiet, and with one line about what went wrong."""
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
    sender.send((refused, reason, told[:WARNINGS]))  # short: nobody reads before the process has ended
    sys.exit(code)
