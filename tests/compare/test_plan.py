"""Plans from TOML: what they unfold into, what is refused, and names of folders."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_plugin.compare.plan import (
    THRESHOLDS,
    Plan,
    ProblemSpec,
    Search,
    digest_of,
    make_plan,
    read_plan,
    slug,
)
from pahq_plugin.compare.work import Judgement
from pahq_plugin.errors import ConfigError

SMALL = {"problems": ["ioi"], "methods": ["acdc"], "thresholds": [0.01]}


def plan_of(text: str, folder: Path) -> Plan:
    file = folder / "plan.toml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file)


def short(plan: Plan) -> list[tuple[str, str, float | None, int]]:
    """What each search is, in the order of the plan."""
    return [(s.problem.name, s.method, s.threshold, s.seed) for s in plan.searches]


# Forms --------------------------------------------------------------------------------------------


def test_a_plan_without_runs_is_one_grid(tmp_path: Path) -> None:
    """Methods that rank edges appear once whatever the thresholds."""
    plan = plan_of(
        """
        title = "Ours"
        note = "Nothing else."
        test_batches = 2
        problems = ["ioi", { name = "greater-than", batch_size = 16 }]
        methods = ["acdc", "eap"]
        thresholds = [0.01, 1]
        seeds = [3]
        """,
        tmp_path,
    )
    assert short(plan) == [
        (name, method, threshold, 3)
        for name in ("ioi", "greater-than")
        for method, threshold in (("acdc", 0.01), ("acdc", 1.0), ("eap", None))
    ]
    assert (plan.title, plan.note, plan.test_batches) == ("Ours", "Nothing else.", 2)
    assert plan.problems == [ProblemSpec("ioi"), ProblemSpec("greater-than", batch_size=16)]
    assert {(s.batches, s.ablation, str(s.options)) for s in plan.searches} == {(1, "resample", "{}")}


def test_runs_start_from_the_top_of_the_file(tmp_path: Path) -> None:
    """A run replaces what it names and inherits the rest."""
    plan = plan_of(
        """
        problems = ["ioi"]
        seeds = [0, 1]
        thresholds = [0.001, 0.01]
        batches = 2
        ablation = "zero"

        [[runs]]
        methods = ["acdc"]

        [[runs]]
        methods = ["edge-probing"]
        seeds = [7]
        batches = 0
        ablation = "resample"
        options = { epochs = 2, show = [1, "a"] }
        """,
        tmp_path,
    )
    ours = [("ioi", "acdc", t, seed) for seed in (0, 1) for t in (0.001, 0.01)]
    assert short(plan) == [*ours, ("ioi", "edge-probing", None, 7)]
    assert {(s.batches, s.ablation) for s in plan.searches[:-1]} == {(2, "zero")}
    last = plan.searches[-1]
    assert (last.batches, last.ablation) == (None, "resample"), "0 batches are all"
    assert last.options == {"epochs": 2, "show": [1, "a"]}


def test_defaults() -> None:
    plan = make_plan({"problems": ["ioi"], "methods": ["pahq"]}, Path())
    assert short(plan) == [("ioi", "pahq", t, 0) for t in THRESHOLDS]
    assert plan.test_batches is None and plan.title and plan.note == ""


def test_what_is_named_twice_runs_once() -> None:
    twice = {name: [*values, *values] for name, values in SMALL.items()}
    content = {"runs": [twice, SMALL, {**SMALL, "seeds": [0, 1]}]}
    assert short(make_plan(content, Path())) == [("ioi", "acdc", 0.01, 0), ("ioi", "acdc", 0.01, 1)]


def test_a_plan_is_made_of_json_values() -> None:
    record = make_plan({**SMALL, "test_batches": 3}, Path()).record()
    assert record["test_batches"] == 3 and len(record["searches"]) == 1
    assert digest_of(record) == digest_of(make_plan({**SMALL, "test_batches": 3}, Path()).record())


def test_ablations_are_named_in_any_case() -> None:
    """As ``discover`` takes them; the name does not make another search of it."""
    searches = [make_plan({**SMALL, "ablation": a}, Path()).searches[0] for a in ("ZERO", "zero")]
    assert searches[0].folder == searches[1].folder and searches[0].ablation == "zero"


# Refusals -----------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"thresholds": []}, "thresholds"),
    ({"thresholds": 0.1}, "thresholds"),
    ({"thresholds": [-1.0]}, "threshold"),
    ({"thresholds": [float("nan")]}, "threshold.*nan"),
    ({"thresholds": [float("inf")]}, "threshold.*inf"),
    ({"thresholds": [10**400]}, "threshold"),
    ({"thresholds": [True]}, "threshold.*True"),
    ({"thresholds": ["0.1"]}, "threshold.*'0.1'"),
    ({"seeds": []}, "seeds"),
    ({"seeds": [1.0]}, "seed"),
    ({"seeds": [True]}, "seed.*True"),
    ({"seeds": [2**63]}, "seed"),
    ({"seeds": 1}, "seeds"),
    ({"problems": []}, "problems"),
    ({"problems": "ioi"}, "problems"),
    ({"problems": ["../../x"]}, r"'\.\./\.\./x'.*greater-than"),
    ({"problems": [["ioi"]]}, "problem"),
    ({"problems": [{"model": "gpt2"}]}, "name"),
    ({"problems": [{"name": 1}]}, "name"),
    ({"problems": [{"name": "ioi", "size": 1}]}, "'size'.*batch_size"),
    ({"problems": [{"name": "ioi", "batch_size": 1.5}]}, "batch_size"),
    ({"problems": [{"name": "ioi", "batch_size": True}]}, "batch_size"),
    ({"problems": [{"name": "ioi", "model": 1}]}, "model"),
    ({"problems": [{"name": "ioi", "prompts": 1}]}, "prompts"),
    ({"problems": [{"name": "ioi", "prompts": ""}]}, "prompt"),
    ({"problems": [{"name": "ioi", "prompts": "a\nb"}]}, "prompt"),
    ({"problems": [{"name": "ioi", "prompts": "a\0b"}]}, "prompt"),
    ({"problems": [{"name": "ioi", "prompts": "a" * 5000}]}, "prompt"),
    ({"methods": "acdc"}, "methods"),
    ({"methods": ["magic"]}, "'magic'.*acdc"),
    ({"methods": ["pahq@fp32"]}, "'pahq@fp32'"),
    ({"methods": ["pahq@"]}, "'pahq@'"),
    ({"methods": ["acdc@int8"]}, "'acdc@int8'"),
    ({"batches": 1.0}, "batches"),
    ({"batches": True}, "batches"),
    ({"ablation": 3}, "ablation"),
    ({"ablation": "magic"}, "ablation.*'magic'.*resample"),
    ({"options": ["epochs"]}, "options"),
    ({"options": {"a": {"b": [float("inf")]}}}, "options"),
    ({"method": ["acdc"]}, "'method'.*methods"),
    ({"runs": {"methods": ["acdc"]}}, "runs"),
    ({"runs": ["acdc"]}, "runs"),
    ({"runs": [{"title": "x"}]}, "'title'"),
    ({"runs": [{"seeds": [None]}]}, "seed"),
    ({"runs": [{}, {"ablation": "zero"}]}, "ablation"),
    ({"methods": ["random"], "runs": [{}, {"options": {"a": 1}}]}, "random.*options"),
    ({"title": 1}, "title"),
    ({"note": ["x"]}, "note"),
    ({"test_batches": -2}, "test_batches.*-2"),
    ({"test_batches": "all"}, "test_batches.*'all'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_values_are_refused_in_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_plan({**SMALL, **change}, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "seeds = [",
        "seeds = 1\nseeds = 2",
        "problems = ['ioi']\nmethods = ['acdc']\nseeds = [" + "9" * 5000 + "]",
        "problems = ['ioi']\nmethods = ['acdc']\ntitle = 0x" + "f" * 5000,
        "options = " + "[" * 5000 + "]" * 5000,
        "problems = ['ioi']\nmethods = ['acdc']\noptions = { from = 2020-01-01 }",
        "problems = ['ioi']\nmethods = ['acdc']\noptions = { at = 10:00:00 }",
        "problems = ['ioi']\nmethods = [2020-01-01T00:00:00Z]",
        "",
    ],
    ids=range(9),
)
def test_unusable_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.toml") as error:
        plan_of(text, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [40, 100, 200, 300, 400])
def test_deep_options_are_taken_or_refused(depth: int, tmp_path: Path) -> None:
    head = "problems = ['ioi']\nmethods = ['random']\noptions = { a = "
    try:
        plan = plan_of(head + "[" * depth + "]" * depth + " }", tmp_path)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert plan.searches[0].folder


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "a.toml", tmp_path, tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match=str(path)):
            read_plan(path)


# Names --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=120))
def test_slugs_stay_where_they_are(name: str) -> None:
    kept = slug(name)
    assert set(kept) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    assert kept not in (".", "..") and not kept.startswith(".") and len(kept) <= 80


@pytest.mark.parametrize(
    "problem",
    [
        ProblemSpec("../../x"),
        ProblemSpec("/etc/passwd"),
        ProblemSpec("ioi", model="../../../" + "x" * 400),
        ProblemSpec("ioi", model="..\\..\\x\0\n"),
        ProblemSpec("....//"),
        ProblemSpec("ü" * 300),
    ],
)
def test_no_name_leads_out_of_the_folder(problem: ProblemSpec, tmp_path: Path) -> None:
    search = Search(problem, "acdc", 0.01, 0)
    for name in (search.folder, Judgement((search,), (), None, "").file):
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert not name.startswith(".") and len(name) < 200
        (tmp_path / name).touch()


def test_prompt_files_cannot_lead_out_of_the_folder_either(tmp_path: Path) -> None:
    file = tmp_path / ".. ..%2f .json"
    file.write_text("{}")
    content = {**SMALL, "problems": [{"name": "ioi", "prompts": file.name}]}
    search = make_plan(content, tmp_path).searches[0]
    assert Path(search.folder).name == search.folder
    assert str(tmp_path) not in search.folder


def test_prompt_files_count_by_their_content(tmp_path: Path) -> None:
    """Wherever the folder lies; another content makes another search."""
    folders = []
    for place, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "p.json").write_text(content)
        given = {**SMALL, "problems": [{"name": "ioi", "prompts": "p.json"}]}
        folders.append(make_plan(given, tmp_path / place).searches[0].folder)
    assert folders[0] == folders[1] != folders[2]


def test_each_setting_counts() -> None:
    base = Search(ProblemSpec("ioi"), "acdc", 0.01, 0)
    others = [
        replace(base, problem=ProblemSpec("induction")),
        replace(base, problem=ProblemSpec("ioi", model="gpt2")),
        replace(base, problem=ProblemSpec("ioi", batch_size=4)),
        replace(base, problem=ProblemSpec("ioi", positional=True)),
        replace(base, method="pahq"),
        replace(base, threshold=0.01 * (1 + 1e-12)),
        replace(base, threshold=None),
        replace(base, seed=1),
        replace(base, batches=2),
        replace(base, batches=None),
        replace(base, ablation="zero"),
        replace(base, options={"epochs": 1}),
        replace(base, options={"epochs": 2}),
    ]
    assert len({search.folder for search in [base, *others]}) == len(others) + 1
    reordered = [replace(base, options=o) for o in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert reordered[0].folder == reordered[1].folder


def test_problems_that_differ_have_different_labels() -> None:
    """Tables go by label."""
    specs = [
        ProblemSpec("ioi"),
        ProblemSpec("ioi", model="gpt2"),
        ProblemSpec("ioi", prompts="/x/mine.json"),
        ProblemSpec("ioi", positional=True),
    ]
    assert len({spec.label for spec in specs}) == len(specs)


def test_problems_whose_files_would_have_one_name_are_refused(tmp_path: Path) -> None:
    problems = []
    for name in ("a b", "a-b"):
        (tmp_path / f"{name}.json").write_text(f'["{name}"]')
        problems.append({"name": "ioi", "prompts": f"{name}.json"})
    with pytest.raises(ConfigError, match="'ioi a-b' and 'ioi a b'"):
        make_plan({"methods": ["acdc"], "problems": problems}, tmp_path)


@pytest.mark.parametrize("changed", [{"ablation": "zero"}, {"options": {"epochs": 3}}], ids=str)
def test_runs_that_one_row_of_a_table_would_mix_are_refused(changed: dict[str, Any]) -> None:
    """Also at thresholds or seeds that the other run lacks."""
    runs = [{"thresholds": [0.01]}, {"thresholds": [0.1], "seeds": [1], **changed}]
    message = f"two runs have pahq on ioi with different {next(iter(changed))}; compare them"
    with pytest.raises(ConfigError, match=message):
        make_plan({"problems": ["ioi"], "methods": ["pahq"], "runs": runs}, Path())
    other = {**runs[1], "methods": ["acdc"]}  # another method may have its own
    make_plan({"problems": ["ioi"], "runs": [{**runs[0], "methods": ["pahq"]}, other]}, Path())


def test_a_prompt_file_is_what_it_was_when_the_plan_was_made(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{}")
    content = {"problems": [{"name": "ioi", "prompts": "mine.json"}], "methods": ["random"]}
    (search,) = make_plan(content, tmp_path).searches
    folder = search.folder
    file.write_text("[]")
    assert search.folder == folder != make_plan(content, tmp_path).searches[0].folder
    file.unlink()
    assert search.folder == folder


SCRIPT = """
from pathlib import Path
from pahq_plugin.compare.plan import make_plan
problems = ["ioi", {"name": "ioi", "positional": True, "model": "gpt2"}]
content = {"problems": problems, "methods": ["random"], "options": {"b": [1, {"d": 2, "c": 3}], "a": 1}}
folders = [search.folder for search in make_plan(content, Path()).searches]
"""


@pytest.mark.full
def test_names_are_the_same_in_every_process() -> None:
    here: dict[str, Any] = {}
    exec(SCRIPT, here)
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT + "print(*folders)"],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here["folders"] and len(set(here["folders"])) == 2
