"""Which circuits of a ranking are judged, and what a search refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import pahq_plugin as pahq
from pahq_plugin.compare import work as task
from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.errors import ConfigError, PromptError
from pahq_plugin.results.decision import saved_decisions
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
    with refused(ConfigError, "host-acdc searches with the first batch only; set batches to 1"):
        task.find(search, tmp_path, 1)


def test_prompts_that_change_meanwhile_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.json"
    file.write_text("new")
    monkeypatch.setattr("pahq_plugin.problems.load_problem", lambda name, **options: None)
    spec = ProblemSpec("ioi", prompts=str(file), content="digest of the old")
    with refused(PromptError, f"{file} was changed while the comparison ran; start it again"):
        task.find(Search(spec, "random", None, 0), tmp_path, 1)
