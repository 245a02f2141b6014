"""Terminals that are not UTF-8: a finished search is not lost to its own table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import pahq_plugin as pahq
from tests.helpers.small import loader, small_model


def run(encoding: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    environment.pop("PYTHONUTF8", None)
    command = [sys.executable, "-m", "pahq_plugin", *map(str, words)]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose name not every terminal can print."""
    model = small_model()
    model.cfg.model_name = "modèle 模型"
    found = pahq.discover(model, loader(), method="acdc", threshold=0.01, progress=False)
    return found.save(tmp_path_factory.mktemp("result") / "r")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_results_are_printed(encoding: str, result: Path) -> None:
    done = run(encoding, "show", result)
    assert done.returncode == 0 and not done.stderr
    text = done.stdout.decode(encoding)
    assert "Strongest" in text and ("█" if encoding == "utf-8" else "###") in text
    assert ("模型" if encoding == "utf-8" else "??") in text


@pytest.mark.parametrize("words", [("--help",), ("discover", "--help"), ("compare", "--help")])
def test_help_is_printed(words: tuple[str, ...]) -> None:
    done = run("ascii", *words)
    assert done.returncode == 0 and not done.stderr and b"Options" in done.stdout


def test_a_search_ends_well(tmp_path: Path) -> None:
    done = run("ascii", "discover", "ioi", "--method", "acdc", "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "result.json").is_file() and b"edges kept" in done.stdout


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = run("ascii", "show", tmp_path / "模型")
    assert done.returncode == 1 and b"error: no result at" in done.stderr


def test_tables_know_the_console_that_they_are_printed_on(result: Path) -> None:
    found = pahq.Discovery.load(result, small_model())
    with open(result / "out.txt", "w", encoding="ascii") as file:
        Console(file=file, width=100).print(found)
    assert "###" in (result / "out.txt").read_text()
