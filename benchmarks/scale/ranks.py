"""One search shared by the processes that ``torchrun`` started; the first prints its figures as JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from statistics import median
from typing import Any

import torch

from benchmarks.models import Case, load
from benchmarks.scale.measure import MeasureError, cpu_search, search
from pahq_plugin.system.processes import launched

PATIENCE = 600
"""Seconds that processes may take."""


def main() -> None:
    """Search with the case, method and number of turns of the command line."""
    case, method, repeat = Case(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    with launched() as world:
        if hasattr(os, "sched_setaffinity"):
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {processors[world.rank % len(processors)]})
        model, loader = load(case)
        kept = len(search(case, method, model, loader).circuit)
        turns = [cpu_search(case, method, model, loader) for _ in range(repeat)]
        everyone = world.collect([turn["cpu_seconds"] for turn in turns])
        if world.is_first:
            own = [median(each) for each in everyone]
            seconds = [turn["seconds"] for turn in turns]
            print(json.dumps({"kept": kept, "seconds": seconds, "cpu_seconds": own}))


def measured(case: Case, method: str, processes: int, repeat: int) -> dict[str, Any]:
    """Figures of a search by so many processes on this machine, with gloo.

    Raises:
        MeasureError: one of them failed.
    """
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = connection.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "benchmarks.scale.ranks",
        json.dumps(vars(case)), method, str(repeat),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PAHQ_MEETING": "120"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{processes} processes took more than {PATIENCE} seconds") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line] or ["no word"]
        raise MeasureError(f"{processes} processes did not come to their end: {said[-1].strip()}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
