"""Several processes that share prompts: same decisions, and no hang when one dies (acceptance F3)."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import torch
from pahq_plugin.discovery import acdc
from pahq_plugin.engines.incremental import estimating
acdc.SNAPSHOT_EVERY = 40
estimating.FEWEST = estimating.LEAST_PRODUCTS = 1  # the bundled model is small
torch.set_num_threads(1)
from pahq_plugin.cli import main
main()
"""


def free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return int(connection.getsockname()[1])


def start(
    size: int, arguments: list[str], own: Callable[[int], list[str]] = lambda rank: []
) -> list[subprocess.Popen[str]]:
    """Processes of one run, as ``torchrun`` starts them, each told its rank; ``own`` gives further
    arguments of each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    shared |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments, *own(rank)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen[str]], within: float = 300) -> list[tuple[int, str]]:
    """Exit code and last line of what each said; fails if one hangs."""
    found = []
    for process in processes:
        _, said = process.communicate(timeout=within)
        lines = [line for line in said.splitlines() if line.strip()]
        found.append((process.returncode, lines[-1] if lines else ""))
    return found


def arguments(out: Path, *more: str) -> list[str]:
    search = ["discover", "greater-than", "--threshold", "0.001", "--checkpoint-every", "0", "--json"]
    return [*search, "--out", str(out), *more]


def decisions(out: Path) -> list[tuple[str, bool]]:
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return [(entry["edge"], entry["kept"]) for entry in record["decisions"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert ends(start(1, arguments(folder)))[0][0] == 0
    return folder


def test_two_processes_take_the_same_decisions(alone: Path, tmp_path: Path) -> None:
    assert ends(start(2, arguments(tmp_path))) == [(0, ""), (0, "")]
    assert decisions(tmp_path) == decisions(alone)
    assert sorted(os.listdir(tmp_path)) == ["result.json", "run.json"]


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_any_number_of_processes(method: str, engine: str, tmp_path: Path) -> None:
    """1, 2 and 4, and 3, which shares 8 prompts unevenly."""
    found = {}
    for size in (1, 2, 3, 4):
        folder = tmp_path / str(size)
        chosen = ["--method", method, "--engine", engine]
        assert {code for code, _ in ends(start(size, arguments(folder, *chosen)), 900)} == {0}
        found[size] = decisions(folder)
    assert found[1] == found[2] == found[3] == found[4]


def killed(out: Path, victim: int, after: float | None) -> list[tuple[int, str]]:
    """Start two processes and kill one; how they ended. The other has a minute.

    Args:
        after: seconds, or ``None`` for as soon as the search has left a checkpoint.
    """
    processes = start(2, arguments(out))
    begun = time.monotonic()
    while processes[victim].poll() is None and not (
        (out / "checkpoint.safetensors").exists() if after is None else time.monotonic() - begun > after
    ):
        time.sleep(0.01)
    processes[victim].kill()
    try:
        return ends(processes, 60)
    finally:
        for process in processes:
            process.kill()


def check_kill(out: Path, alone: Path, victim: int, after: float | None = None) -> None:
    """Whoever is left stops with one line, and all started again come to the same result."""
    code, said = killed(out, victim, after)[1 - victim]
    if code != 0:
        assert code == 1 and said.startswith("error: ") and "process" in said, said
    if not (out / "result.json").exists():
        assert {code for code, _ in ends(start(2, arguments(out)))} == {0}
    assert decisions(out) == decisions(alone)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_effects_of_all_edges_are_the_same_in_any_number_of_processes(
    engine: str, tmp_path: Path
) -> None:
    found = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        command = ["discover", "greater-than", "--method", "eactp", "--n-edges", "100", "--json"]
        command += ["--engine", engine, "--checkpoint-every", "0", "--out", str(folder)]
        assert {code for code, _ in ends(start(size, command), 900)} == {0}
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        found[size] = {entry["edge"]: entry["effect"] for entry in record["decisions"]}
        assert sum(entry["kept"] for entry in record["decisions"]) == 100
    assert found[1] == pytest.approx(found[2], rel=1e-4, abs=1e-6)
    assert found[1] == pytest.approx(found[3], rel=1e-4, abs=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_stops_the_others(victim: int, alone: Path, tmp_path: Path) -> None:
    check_kill(tmp_path, alone, victim)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_processes_that_die_at_random_moments(alone: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for turn in range(10):
        victim, after = moments.randrange(2), moments.uniform(1, 15)
        begun = time.monotonic()
        check_kill(tmp_path / str(turn), alone, victim, after)
        seconds = time.monotonic() - begun
        print(f"turn {turn}: process {victim} killed after {after:.1f} s, {seconds:.0f} s in all")


@pytest.mark.full
def test_what_processes_cannot_share_is_refused_in_each(tmp_path: Path) -> None:
    ranking = ["discover", "greater-than", "--method", "eap", "--out", str(tmp_path)]
    for command, said in (
        (ranking, "'eap' runs in one process"),
        (arguments(tmp_path, "--batch-size", "1"), "a batch of 1 prompts cannot be shared by 2"),
    ):
        for code, line in ends(start(2, command)):
            assert code == 1 and said in line
    assert not (tmp_path / "result.json").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("flag", "values", "name"),
    [("--threshold", ("0.001", "0.002"), "threshold"), ("--seed", ("0", "1"), "seed")],
)
def test_processes_that_disagree_stop_at_once(
    flag: str, values: tuple[str, str], name: str, tmp_path: Path
) -> None:
    for rank, (code, line) in enumerate(
        ends(start(2, arguments(tmp_path), lambda r: [flag, values[r]]))
    ):
        said = f"error: process {1 - rank} has a different {name} from process {rank}; start all"
        assert code == 1 and line.startswith(said), line
    assert not (tmp_path / "result.json").exists()


@pytest.mark.full
def test_processes_share_a_comparison(tmp_path: Path) -> None:
    chosen = ["--methods", "acdc,eap,random", "--thresholds", "0.03", "--batch-size", "4"]
    command = [
        "compare",
        "greater-than",
        *chosen,
        "--test-batches",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert [code for code, _ in ends(start(2, command))] == [0, 0]
    assert len(list((tmp_path / "found").iterdir())) == 3 == len(list((tmp_path / "judged").iterdir()))
    assert (tmp_path / "report.html").is_file()
