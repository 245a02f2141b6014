"""The command ``pahq compare``: what it takes, prints, writes and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pahq_plugin.cli.app import app

PLAN = """
title = "Mine"
problems = [{ name = "greater-than", batch_size = 4 }]
thresholds = [0.03]
test_batches = 1

[[runs]]
methods = ["pahq", "acdc"]

[[runs]]
methods = ["eap", "ground-truth"]
"""


def refused(*arguments: str | Path) -> str:
    """What the command says when it ends with exit code 1."""
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        app, ["compare", *(str(argument) for argument in arguments)]
    )
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1 and not result.stdout
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a problem"),
        (["nothing"], "'nothing'"),
        (["ioi", "--methods", "acdc,magic"], "'magic'"),
        (["ioi", "--thresholds", "0.1,big"], "--thresholds '0.1,big'"),
        (["ioi", "--batches", "-1"], "batches"),
        (["ioi", "--prompts", "missing.json"], "missing.json"),
        (["--plan", "missing.toml"], "missing.toml"),
        (["ioi", "--profile", "reduced"], "leave out problems"),
        (["--profile", "reduced", "--ablation", "zero"], "leave out --ablation"),
        (["--plan", "x.toml", "--positional"], "leave out --positional"),
        (["--profile", "full", "--plan", "x.toml"], "leave out --profile"),
        (["--profile", "full", "--methods", "eap"], "leave out methods"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert said in refused(*arguments, "--out", out)
    assert not out.exists()


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "is a file" in refused("ioi", "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which forks its workers from a server."""
    return subprocess.run(
        [sys.executable, "-m", "pahq_plugin", "compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
        check=False,
        timeout=300,
    )


@pytest.mark.full
def test_a_plan_is_run_and_gone_on_with(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN)
    first = compare("--plan", plan, "--out", out, "--processes", "2")
    assert first.returncode == 0, first.stderr
    assert "All methods over all problems" in first.stdout and "0 of 1,519" in first.stdout
    assert "not possible: ground-truth on greater-than, seed 0: no published circuit" in first.stdout
    assert f"report: {out / 'report.html'}" in first.stdout and "Traceback" not in first.stderr
    results = {file: file.stat().st_mtime_ns for file in out.glob("found/*/*")}
    assert len(results) == 9

    again = compare("--plan", plan, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    printed = json.loads(again.stdout)
    assert printed["report"] == str(out / "report.html") and printed["failed"] == {}
    assert [row["method"] for row in printed["summary"]] == ["pahq", "acdc", "eap"]
    assert {file: file.stat().st_mtime_ns for file in out.glob("found/*/*")} == results


@pytest.mark.full
def test_a_piece_that_breaks_is_told_and_the_rest_is_reported(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    runs = '[[runs]]\nmethods = ["act-mag", "Circuit Probing"]\n'
    broken = '[[runs]]\nmethods = ["ig"]\noptions = { integrated_grad_samples = "many" }\n'
    plan.write_text(PLAN.split("[[runs]]")[0] + runs + broken)
    done = compare("--plan", plan, "--out", out)
    assert done.returncode == 1
    assert "failed: ig on greater-than, seed 0: TypeError" in done.stderr
    assert "Circuit Probing on greater-than, seed 0: method 'Circuit Probing' looks for" in done.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "FAILED: ig on greater-than" in page and "circuit_sizes" in page
    assert "act-mag" in done.stdout
