"""Which circuits of a ranking are judged, and what a search refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pahq_plugin as pahq
from pahq_plugin.compare import work as task
from pahq_plugin.compare.held_out import judging
from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.compare.tables import read_material
from pahq_plugin.errors import ConfigError, PromptError
from pahq_plugin.host import AblationType
from pahq_plugin.host.prompts import collect_batches, loader_of
from pahq_plugin.metrics import kl_div
from pahq_plugin.problems import load_problem
from pahq_plugin.results.decision import saved_decisions
from pahq_plugin.results.files import RUN_FILE
from tests.compare.swept import PLAN, files
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


def test_rankings_are_cut_with_ties() -> None:
    effects = [-5, 3, 3, -3, 1, 0, 0]
    ranking = saved_decisions(
        {
            "decisions": [
                {"edge": f"e{i}", "seq_idx": None, "effect": effect, "kept": True, "exact": True}
                for i, effect in enumerate(effects)
            ]
        }
    )
    sizes = [len(task.cut(ranking, size)) for size in range(8)]
    assert sizes == [0, 1, 4, 4, 4, 5, 5, 5], "an edge without score is in no circuit"
    assert task.cut(ranking, 1) == [("e0", None)]


@pytest.mark.parametrize("size", [0, 1, 7, 30, 46])
def test_cuts_are_circuits_of_that_many_edges(size: int) -> None:
    model, prompts = small_model(n_heads=2), loader()
    found = pahq.discover(model, prompts, method="Act Mag", progress=False)
    chosen = pahq.discover(model, prompts, method="Act Mag", n_edges=size, progress=False).circuit
    cut = task.cut(found.decisions, size)
    assert {name for name, _ in cut} == {edge.name for edge in chosen}


def test_a_search_that_reads_one_batch_is_not_compared_on_more(tmp_path: Path) -> None:
    search = Search(ProblemSpec("greater-than", batch_size=4), "host-acdc", 0.1, 0, batches=2)
    with refused(ConfigError, "batches"):
        task.find(search, tmp_path, 1)


def test_prompts_that_change_meanwhile_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.json"
    file.write_text("new")
    monkeypatch.setattr("pahq_plugin.problems.load_problem", lambda name, **options: None)
    spec = ProblemSpec("ioi", prompts=str(file), content="digest of the old")
    with refused(PromptError, str(file)):
        task.find(Search(spec, "random", None, 0), tmp_path, 1)


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


def test_the_same_search_twice_at_once_is_no_error(copied: Path, tmp_path: Path) -> None:
    """The second finds the folder there, and leaves it."""
    before = files(copied)
    task.find(PLAN.searches[-1], copied / "found", 1)
    assert files(copied) == before and RUN_FILE in str(before)
    assert not list((copied / "found").glob(".*"))
