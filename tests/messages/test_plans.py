"""Messages of comparisons: plans, baselines, and what a sweep left in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pahq_plugin.compare import tables as frames
from pahq_plugin.compare import work as task
from pahq_plugin.compare.baselines import get_baseline
from pahq_plugin.compare.files import read_judged, read_search
from pahq_plugin.compare.plan import make_plan, profile, read_plan
from pahq_plugin.compare.run import run_plan
from pahq_plugin.errors import ConfigError, ResultError
from tests.helpers.refused import refused

SMALL: dict[str, Any] = {"problems": ["ioi"], "methods": ["acdc"], "thresholds": [0.01]}

PLANS: list[tuple[dict[str, Any], str]] = [
    ({"color": 1}, "the plan has no key 'color'; it takes ablation, "),
    ({"runs": []}, "runs must be one or more tables: [[runs]]"),
    ({"options": 3}, "options must be a table, not 3"),
    ({"options": {"x": float("nan")}}, "options must hold finite numbers, strings and lists: "),
    ({"problems": [3]}, "a problem must be a name or a table with a name, not 3"),
    ({"problems": ["x"]}, "no problem 'x'; known: "),
    ({"problems": [{"name": "ioi", "prompts": "x.json"}]}, "no readable prompt file '"),
    ({"problems": [{"name": "ioi", "positional": 1}]}, "positional must be true or false, not 1"),
    ({"problems": [{"name": "ioi", "batch_size": 0}]}, "batch_size must be an integer above 0, not 0"),
    (
        {"problems": [{"name": "ioi", "model": "a\nb"}]},
        "a problem is named 'ioi a\\nb'; names must be printable",
    ),
    ({"methods": []}, "methods must be a list with at least one entry, not []"),
    ({"methods": [3]}, "a method must be a string, not 3"),
    ({"thresholds": [0]}, "a threshold must be a number above 0, not 0"),
    ({"seeds": [-1]}, "a seed must be an integer from 0 to 2**63 - 1, not -1"),
    ({"batches": -1}, "batches must be 0 (all) or an integer above 0, not -1"),
    (
        {"problems": ["ioi", {"name": "ioi", "batch_size": 3}]},
        "two problems are named 'ioi' and 'ioi', which tables and files cannot tell apart; compare",
    ),
    (
        {"runs": [{"batches": 1}, {"batches": 2}]},
        "two runs have acdc on ioi with different batches; compare them in separate plans",
    ),
]


@pytest.mark.parametrize(("changes", "message"), PLANS, ids=[message for _, message in PLANS])
def test_plans(changes: dict[str, Any], message: str) -> None:
    make_plan(SMALL, Path())
    with refused(ConfigError, message):
        make_plan(SMALL | changes, Path())


def test_files_of_plans(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text("x =")
    with refused(ConfigError, f"{file} is not readable TOML: "):
        read_plan(file)
    file.write_text('problems = ["x"]\nmethods = ["acdc"]')
    with refused(ConfigError, f"{file}: no problem 'x'; known: "):
        read_plan(file)
    file.write_text(f'problems = ["ioi"]\nmethods = ["acdc"]\nseeds = [0x{"f" * 5000}]')
    with refused(ConfigError, f"{file}: Exceeds the limit"):
        read_plan(file)
    with refused(ConfigError, "unknown profile 'tiny'; known: reduced, full"):
        profile("tiny")


def test_baselines_that_do_not_fit() -> None:
    with refused(ConfigError, "eap-ig differentiates logits of answers; these are numbers"):
        get_baseline("eap-ig").fitted("mse", None, False, {})
    with refused(ConfigError, "acdc is not an algorithm of the host and takes no options"):
        get_baseline("acdc").fitted("mse", 0.1, True, {"steps": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["ground-truth"]}, "no published circuit is known for "),
        ({"methods": ["random"], "ablation": "zero"}, "random supports the ablation resample only"),
    ],
)
def test_searches_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = make_plan({**SMALL, "problems": ["induction"], **changes}, Path())
    with refused(ConfigError, message):
        task.find(plan.searches[0], tmp_path, 1)


def test_where_a_comparison_goes(tmp_path: Path) -> None:
    plan = make_plan(SMALL, Path())
    with refused(ConfigError, "processes=0 and threads=1 must both be at least 1"):
        run_plan(plan, tmp_path, processes=0, threads=1)
    (tmp_path / "file").touch()
    with refused(ConfigError, f"{tmp_path / 'file'} is a file; name a folder for the comparison"):
        run_plan(plan, tmp_path / "file", processes=1, threads=1)


def test_what_a_sweep_left(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    for content, reason in (
        ("{", "Expecting property name"),
        ("[]", "it is not a JSON object"),
        ("{}", "search is missing or wrong"),
    ):
        file.write_text(content)
        with refused(ResultError, f"{file} is damaged; delete it and run again: {reason}"):
            read_search(file)
    file.write_text("{}")
    with refused(ResultError, "is damaged; delete it and run again: problem is missing or wrong"):
        read_judged(file, {"problem": "ioi"})
    with refused(ResultError, f"{tmp_path / 'run.json'} is missing; delete {tmp_path} and run again"):
        task.cost(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    message = f"expected schema 'pahq-discovery/1'; delete {tmp_path} and run again"
    with refused(ResultError, message):
        frames._finding(make_plan(SMALL, Path()).searches[0], tmp_path)


def test_a_folder_that_is_there_with_files_missing(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "other").touch()
    result = SimpleNamespace(save=lambda folder: os.listdir(folder))
    with refused(ResultError, f"{there} is damaged; delete it and run again"):
        task._save_whole(result, {}, there)  # type: ignore[arg-type]
