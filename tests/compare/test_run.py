"""Sweeps in processes of their own: resumed, killed, damaged and side by side."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pahq_plugin.compare import run as sweep
from pahq_plugin.compare import tables as frames
from pahq_plugin.compare import work as task
from pahq_plugin.compare.plan import Plan, ProblemSpec, Search, make_plan
from pahq_plugin.compare.run import Outcome, Work, judgements_of, run_work
from pahq_plugin.compare.summary import at_threshold, precision_study, summary
from pahq_plugin.compare.tables import read_material
from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.files import RESULT_FILE
from tests.compare.swept import CONTENT, PIECES, PLAN, files, run


def tables(plan: Plan, folder: Path) -> dict[str, str]:
    """Every table that does not hold times, as text."""
    material = read_material(plan, folder)
    made: dict[str, pd.DataFrame] = {
        "searches": frames.searches(material),
        "circuits": frames.circuits(material),
        "summary": summary(material),
        "at_threshold": at_threshold(material, 0.1),
        "precision": precision_study(material),
    }
    assert not any(table.empty for table in made.values())
    return {name: table.to_csv() for name, table in made.items()}


def test_every_search_and_method_has_its_files(done: Path) -> None:
    assert len(PLAN.searches) == PIECES[0]
    for search in PLAN.searches:
        names = {path.name for path in (done / "found" / search.folder).iterdir()}
        assert names == {"result.json", "run.json", "search.json"}
    assert {path.name for path in (done / "judged").iterdir()} == {
        judgement.file for judgement in judgements_of(PLAN, done / "found")
    }
    assert len(list((done / "found").iterdir())) == PIECES[0]
    assert len(list((done / "judged").iterdir())) == PIECES[1]
    assert json.loads((done / "plan.json").read_text()) == PLAN.record()


def never(*_: Any) -> None:
    raise AssertionError("done again")


def test_a_second_run_does_nothing_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(copied)
    monkeypatch.setattr(sweep, "find", never)
    monkeypatch.setattr(sweep, "judge", never)
    assert run(PLAN, copied) == Outcome()
    assert files(copied) == before


def test_a_larger_plan_adds_what_is_missing(copied: Path) -> None:
    """A new seed is searched and judged; a new test size judges again; nothing is lost."""
    before = files(copied)
    more = make_plan({**CONTENT, "methods": ["act-mag"], "seeds": [0, 1]}, Path())
    assert run(more, copied, processes=2) == Outcome()
    after = files(copied)
    added = after.keys() - before.keys()
    assert before.items() <= after.items()
    # Without the FP32 search beside it a ranking is cut at shares only: judged anew for both seeds.
    assert sorted(name.split("/")[0] for name in added) == ["found"] * 3 + ["judged"] * 2


def test_leftovers_of_killed_processes_are_ignored(copied: Path, done: Path) -> None:
    (copied / "found" / ".abc").mkdir()
    (copied / "found" / ".abc" / "search.json").write_text("{")
    (copied / "judged" / ".x.json.1.tmp").write_text("{")
    assert run(PLAN, copied) == Outcome()
    assert tables(PLAN, copied) == tables(PLAN, done)


def find_or_die(search: Search, folder: Path, threads: int) -> None:
    """Like the real one, unless the folder says how this method is to end."""
    means = folder.parent / search.method
    if means.is_file() and means.read_text() == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if means.is_file():
        raise ValueError("two\nlines " + "x" * 1000)
    task.find(search, folder, threads)


@pytest.mark.full
def test_broken_pieces_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    """One worker is killed, one raises, one is refused; the next run does what can be done."""
    monkeypatch.setattr(sweep, "find", find_or_die)
    refused = make_plan({**CONTENT, "methods": ["ground-truth"]}, Path()).searches
    plan = replace(PLAN, searches=(*refused, *PLAN.searches))
    (tmp_path / "random").write_text("killed")
    (tmp_path / "act-mag").write_text("raises")
    outcome = run(plan, tmp_path, processes=2)
    assert list(outcome.refused) == ["ground-truth on induction, seed 0"]
    assert "published circuit" in outcome.refused["ground-truth on induction, seed 0"]
    assert outcome.failed.keys() == {"random on induction, seed 0", "act-mag on induction, seed 0"}
    assert "-9" in outcome.failed["random on induction, seed 0"]
    reason = outcome.failed["act-mag on induction, seed 0"]
    assert reason.startswith("ValueError: two lines xxx") and "find_or_die, line" in reason
    assert len(reason) < 400 and "\n" not in reason
    before = files(tmp_path)
    assert len(list((tmp_path / "judged").iterdir())) == 2
    assert frames.searches(read_material(plan, tmp_path))["method"].nunique() == 2
    for name in ("random", "act-mag"):
        (tmp_path / name).unlink()
        before.pop(name)
    outcome = run(plan, tmp_path)
    assert (list(outcome.refused), outcome.failed) == (["ground-truth on induction, seed 0"], {})
    assert before.items() <= files(tmp_path).items()
    assert tables(PLAN, tmp_path) == tables(PLAN, done)


def test_a_problem_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1")
    content = {
        **CONTENT,
        "methods": ["random"],
        "problems": [{"name": "ioi", "prompts": "bad.json"}, {"name": "ioi", "model": "no-such-model"}],
    }
    outcome = run(make_plan(content, tmp_path), tmp_path / "out")
    assert len(outcome.failed) == 2 and outcome.refused == {}
    assert any("bad.json" in reason for reason in outcome.failed.values())
    assert any("no-such-model" in reason for reason in outcome.failed.values())
    assert read_material(make_plan(content, tmp_path), tmp_path / "out").findings == ()


def test_where_nothing_can_be_written_every_search_fails(tmp_path: Path) -> None:
    """``found`` is a file; root may write anywhere else."""
    (tmp_path / "found").write_text("")
    plan = replace(PLAN, searches=PLAN.searches[-1:])
    outcome = run(plan, tmp_path)
    assert outcome.refused == {} and list(outcome.failed) == ["random on induction, seed 0"]


def test_a_damaged_result_stops_the_next_run_by_name(copied: Path) -> None:
    file = copied / "found" / PLAN.searches[0].folder / RESULT_FILE
    file.write_text("{")
    with pytest.raises(ResultError, match=RESULT_FILE):
        run(PLAN, copied)


@pytest.mark.parametrize("name", ["result.json", "run.json", "search.json"])
def test_what_lacks_a_file_is_not_done(name: str, copied: Path, done: Path) -> None:
    """It counts as missing; a run names it rather than overwrite what may be somebody's."""
    search = PLAN.searches[-1]
    folder = copied / "found" / search.folder
    (folder / name).unlink()
    assert len(read_material(PLAN, copied).findings) == PIECES[0] - 1
    outcome = run(PLAN, copied)
    assert list(outcome.failed) == [search.label]
    assert str(folder) in outcome.failed[search.label] and "delete" in outcome.failed[search.label]
    assert len(list((copied / "found").iterdir())) == PIECES[0], "no temporary folder is left"
    shutil.rmtree(folder)
    assert run(PLAN, copied) == Outcome()
    assert tables(PLAN, copied) == tables(PLAN, done)


def test_other_results_are_judged_anew(copied: Path) -> None:
    """Whoever replaces a result does not get the old judgement of it."""
    search = PLAN.searches[-1]
    file = copied / "found" / search.folder / RESULT_FILE
    before = {judgement.file for judgement in judgements_of(PLAN, copied / "found")}
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    after = {judgement.file for judgement in judgements_of(PLAN, copied / "found")}
    assert len(after - before) == 1
    sized = replace(PLAN, test_batches=2)
    assert not after & {judgement.file for judgement in judgements_of(sized, copied / "found")}


SCRIPT = """
import json, sys
from pathlib import Path
from pahq_plugin.compare.plan import make_plan
from pahq_plugin.compare.run import run_plan

if __name__ == "__main__":
    plan = make_plan(json.loads(sys.argv[1]), Path())
    run_plan(plan, Path(sys.argv[2]), processes=int(sys.argv[3]), progress=False)
"""


def started(folder: Path, processes: int, script: Path) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, with a group and a hash seed of its own."""
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(CONTENT), str(folder), str(processes)],
        start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": str(processes), "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finished(folder: Path) -> int:
    """Pieces of work that lie there whole."""
    found = [p for p in folder.glob("found/*/search.json") if not p.parent.name.startswith(".")]
    return len(found) + len([p for p in folder.glob("judged/*.json") if not p.name.startswith(".")])


def kill_after(folder: Path, pieces: int, wait: float, group: bool, script: Path) -> None:
    """Start a sweep and kill it ``wait`` seconds after so many pieces of work are done."""
    process = started(folder, 1 + group, script)
    try:
        while finished(folder) < pieces and process.poll() is None:
            time.sleep(0.005)
        time.sleep(wait)
    finally:
        if group:  # with its workers
            os.killpg(process.pid, signal.SIGKILL)
        else:  # workers end what they are at
            process.kill()
        process.wait()


@pytest.mark.full
def test_a_killed_sweep_goes_on(tmp_path: Path, done: Path) -> None:
    """Killed with its workers among the searches; what was done is kept."""
    folder = tmp_path / "out"
    kill_after(folder, 3, random.Random(3).uniform(0, 0.5), True, tmp_path / "script.py")
    assert 3 <= finished(folder) < sum(PIECES)
    before = files(folder)
    assert run(PLAN, folder) == Outcome()
    assert finished(folder) == sum(PIECES)
    kept = {n: t for n, t in before.items() if not any(part.startswith(".") for part in Path(n).parts)}
    assert kept.items() <= files(folder).items()
    assert tables(PLAN, folder) == tables(PLAN, done)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_that_is_killed_over_and_over(seed: int, tmp_path: Path, done: Path) -> None:
    folder, draw = tmp_path / "out", random.Random(seed)
    for pieces in range(0, sum(PIECES), 2):
        group = draw.random() < 0.5
        kill_after(folder, pieces, draw.uniform(0, 1), group, tmp_path / "script.py")
    assert run(PLAN, folder) == Outcome()
    assert tables(PLAN, folder) == tables(PLAN, done)


@pytest.mark.full
def test_two_sweeps_in_one_folder(tmp_path: Path, done: Path) -> None:
    """Whichever is first, the tables are the same, and nothing temporary is left."""
    plan = replace(PLAN, searches=PLAN.searches[:4])
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: run(plan, tmp_path), range(2)))
    assert outcomes == [Outcome()] * 2
    assert tables(plan, tmp_path) == tables(plan, done)
    assert not list(tmp_path.rglob(".*"))


def test_problems_with_equal_names_are_judged_apart(done: Path) -> None:
    """Groups go by the whole problem, not by its name."""
    other = replace(PLAN.searches[-1], problem=ProblemSpec("induction", batch_size=4))
    assert (
        len(judgements_of(replace(PLAN, searches=(*PLAN.searches, other)), done / "found")) == PIECES[1]
    )


def refuse_at_length() -> None:
    raise ConfigError("no\n" + "y" * 10**6)


def test_long_messages_do_not_block() -> None:
    """A pipe holds 64 KiB, and nobody reads before the process has ended."""
    outcome = Outcome()
    run_work("", [Work("long", refuse_at_length)], 1, outcome, False)
    assert outcome.refused["long"].startswith("no\\nyyy") and outcome.failed == {}


def test_a_process_that_just_ends_has_failed() -> None:
    outcome = Outcome()
    run_work("", [Work("ends", partial(sys.exit, 3))], 1, outcome, False)
    assert outcome.refused == {} and "exit code 3" in outcome.failed["ends"]
