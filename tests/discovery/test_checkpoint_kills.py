"""Searches that are killed as processes and started again: the same bytes (acceptance F2)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore Ctrl-C
from pahq_plugin.discovery import acdc
from pahq_plugin.engines.incremental import estimating
acdc.SNAPSHOT_EVERY = 40
estimating.FEWEST = estimating.LEAST_PRODUCTS = 1  # the bundled model is small
torch.set_num_threads(1)
from pahq_plugin.cli import main
main()
"""


def command(out: Path, problem: str = "greater-than", method: str = "pahq") -> list[str]:
    arguments = ["discover", problem, "--method", method, "--threshold", "0.001", "--json"]
    return [sys.executable, "-c", SCRIPT, *arguments, "--out", str(out), "--checkpoint-every", "0"]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": str(random.randrange(1000))}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def undisturbed(folder: Path, **case: str) -> tuple[bytes, float]:
    """Bytes of the result, and how long the process took."""
    begun = time.monotonic()
    assert start(command(folder, **case)).wait(300) == 0
    return (folder / "result.json").read_bytes(), time.monotonic() - begun


def killed_and_gone_on_with(folder: Path, sig: int, after: float, **case: str) -> bytes:
    """Bytes of the result of a run that was killed, then started again."""
    process = start(command(folder, **case))
    time.sleep(after)
    process.send_signal(sig)
    process.wait(60)
    if not (folder / "result.json").exists():
        assert start(command(folder, **case)).wait(300) == 0
    assert sorted(os.listdir(folder))[-2:] == ["result.json", "run.json"]
    return (folder / "result.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "sig",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
    ],
)
def test_killed_and_gone_on_with(sig: int, tmp_path: Path, whole: tuple[bytes, float]) -> None:
    expected, seconds = whole
    after = random.Random(int(sig)).uniform(0.6, 1.0) * seconds
    assert killed_and_gone_on_with(tmp_path, sig, after) == expected


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("problem", "method"), [("ioi", "pahq"), ("induction", "acdc")])
def test_killed_at_random_moments(problem: str, method: str, tmp_path: Path) -> None:
    """25 moments each, 50 in all; a run may be killed several times."""
    expected, seconds = undisturbed(tmp_path / "whole", problem=problem, method=method)
    moments = random.Random(problem)
    for turn in range(25):
        folder = tmp_path / str(turn)
        for _ in range(moments.randrange(3)):
            process = start(command(folder, problem, method))
            time.sleep(moments.uniform(0.3, 1.0) * seconds)
            process.kill()
            process.wait(60)
        after = moments.uniform(0.3, 1.0) * seconds
        found = killed_and_gone_on_with(folder, signal.SIGKILL, after, problem=problem, method=method)
        assert found == expected, turn
