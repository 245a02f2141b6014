"""``python -m tests.fuzz``: run the targets, print counts, keep failing inputs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.fuzz.runner import run, write_failures
from tests.fuzz.target import targets

INPUTS = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--inputs", type=int, help=f"in all; default {INPUTS:,}")
    parser.add_argument("--seconds", type=float, help="in all, instead of a number of inputs")
    parser.add_argument("--target", action="append", choices=list(targets()), help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), default="hypothesis")
    parser.add_argument(
        "--failures", type=Path, default=Path("runs/fuzz"), help="folder for failing inputs"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [target for name, target in targets().items() if not given.target or name in given.target]
    inputs = INPUTS if given.inputs is None and given.seconds is None else given.inputs
    if given.engine == "atheris":
        from tests.fuzz.guided import run_guided

        return run_guided(chosen, inputs, given.seconds, given.seed, given.failures)
    started = time.monotonic()
    counts = run(chosen, inputs=inputs, seconds=given.seconds, first_seed=given.seed)
    written = write_failures(counts, given.failures)
    total, failed = sum(count.inputs for count in counts), sum(count.failed for count in counts)
    print(f"{total:,} inputs, {failed:,} violations, {time.monotonic() - started:.0f} s")
    if written:
        print(f"failing inputs: {given.failures}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
