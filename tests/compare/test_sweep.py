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

import numpy as np
import pandas as pd
import pytest

from pahq_plugin.compare import run as sweep
from pahq_plugin.compare import tables as frames
from pahq_plugin.compare import work as task
from pahq_plugin.compare.held_out import judging
from pahq_plugin.compare.plan import Plan, ProblemSpec, Search, make_plan
from pahq_plugin.compare.run import Outcome, judgements_of, run_plan
from pahq_plugin.compare.summary import at_threshold, precision_study, summary
from pahq_plugin.compare.tables import read_material
from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.host import AblationType
from pahq_plugin.host.prompts import collect_batches, loader_of
from pahq_plugin.metrics import kl_div
from pahq_plugin.problems import load_problem
from pahq_plugin.results.files import RESULT_FILE, RUN_FILE

CONTENT: dict[str, Any] = {
    "problems": ["induction"],
    "methods": ["acdc", "unguarded@fp8_e4m3", "act-mag", "random"],
    "thresholds": [0.03, 0.1],
    "test_batches": 1,
}
PLAN = make_plan(CONTENT, Path())
PIECES = 6, 4  # searches, judged methods

run = partial(run_plan, progress=False)


def files(folder: Path) -> dict[str, int]:
    """Every file but the plan, and when it was written."""
    every = (path for path in folder.rglob("*") if path.is_file() and path.name != "plan.json")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in every}


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


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    outcome = run(PLAN, folder)
    assert outcome == Outcome()
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(done, tmp_path / "copied"))


# Results ------------------------------------------------------------------------------------------


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


def test_circuits_are_judged_at_their_sizes(done: Path) -> None:
    """Searches at their thresholds; rankings at the FP32 sizes, and at MIB's shares."""
    material = read_material(PLAN, done)
    sizes = {f.search.threshold: len(f.circuit) for f in material.findings if f.search.method == "acdc"}
    for judged in material.judged:
        record = judged.record
        at = {c["threshold"]: c["size"] for c in record["circuits"] if c["threshold"]}
        free = [c["size"] for c in record["circuits"] if c["threshold"] is None]
        assert len(record["whole"]) == len(record["empty"]) == 8
        assert {len(c["inside"]) for c in record["circuits"]} == {8}
        assert all(("outside" in c) == (c["threshold"] is not None) for c in record["circuits"])
        if record["method"] in ("acdc", "random"):  # random scores do not tie
            assert at == sizes
        if record["method"] == "random":
            assert free == [round(share * 1519) for share in task.SHARES]
        elif record["method"] != "act-mag":
            assert not free


def test_circuits_and_complements_are_run_on_held_out_prompts(done: Path) -> None:
    """Once more in this process, for one circuit."""
    material, given = read_material(PLAN, done), load_problem("induction")
    entry = next(j for j in material.judged if j.record["method"] == "acdc").record["circuits"][0]
    chosen = next(f for f in material.findings if f.search == PLAN.searches[0]).circuit
    circuit = {edge for edge in given.model.edges if (edge.name, edge.seq_idx) in chosen}
    prompts = loader_of(collect_batches(given.model, given.test_loader, 1), given.test_loader)
    with judging(given.model, prompts, AblationType.RESAMPLE, kl_div) as judge:
        inside, outside = judge.run(circuit), judge.run(given.model.edges - circuit)
    np.testing.assert_allclose(entry["inside"], inside, atol=1e-6)
    np.testing.assert_allclose(entry["outside"], outside, atol=1e-6)


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


# What does not work -------------------------------------------------------------------------------


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


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file"):
        run(PLAN, tmp_path / "file")
    with pytest.raises((ConfigError, OSError)):
        run(PLAN, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("counts", [{"processes": 0}, {"processes": -1}, {"threads": 0}])
def test_no_processes_are_refused(counts: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        run(PLAN, tmp_path / "x", **counts)


def test_where_nothing_can_be_written_every_search_fails(tmp_path: Path) -> None:
    """``found`` is a file; root may write anywhere else."""
    (tmp_path / "found").write_text("")
    plan = replace(PLAN, searches=PLAN.searches[-1:])
    outcome = run(plan, tmp_path)
    assert outcome.refused == {} and list(outcome.failed) == ["random on induction, seed 0"]


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["result.json", "run.json", "search.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "[" * 100000])
def test_damaged_searches_are_named(name: str, text: str, copied: Path) -> None:
    folder = copied / "found" / PLAN.searches[0].folder
    (folder / name).write_text(text)
    with pytest.raises(ResultError, match=name) as error:
        read_material(PLAN, copied)
    assert str(folder) in str(error.value) and "delete" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_damaged_judgements_are_named(text: str, copied: Path) -> None:
    file = next((copied / "judged").glob("*.json"))
    file.write_text(text)
    with pytest.raises(ResultError, match=file.name):
        read_material(PLAN, copied)
    file.unlink()
    assert len(read_material(PLAN, copied).judged) == PIECES[1] - 1


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


# Two at once, and killed ones ---------------------------------------------------------------------

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


def test_the_same_search_twice_at_once_is_no_error(copied: Path, tmp_path: Path) -> None:
    """The second finds the folder there, and leaves it."""
    before = files(copied)
    task.find(PLAN.searches[-1], copied / "found", 1)
    assert files(copied) == before and RUN_FILE in str(before)
    assert not list((copied / "found").glob(".*"))


def test_problems_with_equal_names_are_judged_apart(done: Path) -> None:
    """Groups go by the whole problem, not by its name."""
    other = replace(PLAN.searches[-1], problem=ProblemSpec("induction", batch_size=4))
    assert (
        len(judgements_of(replace(PLAN, searches=(*PLAN.searches, other)), done / "found")) == PIECES[1]
    )
