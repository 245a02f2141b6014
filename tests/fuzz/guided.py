"""The byte-level targets under atheris, which looks for inputs that reach new code.

Optional: ``pip install atheris`` (a wheel exists for few interpreters). Each target runs in a process of
its own, because libFuzzer ends the one that it runs in.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.bench import Bench
from tests.fuzz.target import Target, attempt, targets

READERS = (
    "pahq_plugin.system.files",
    "pahq_plugin.results.files",
    "pahq_plugin.compare.plan",
    "pahq_plugin.compare.files",
    "pahq_plugin.discovery.checkpoint",
    "pahq_plugin.discovery.saved_progress",
    "pahq_plugin.problems.prompt_files",
    "pahq_exporters.runtime.prompt_file",
    "pahq_exporters.interchange.graph_json",
    "pahq_exporters.description",
    "pahq_exporters.runtime.heads",
)
"""Modules whose branches guide it; a new reader belongs here, too."""

LONGEST = 20_000
"""Bytes of an input."""


def run_guided(
    chosen: Sequence[Target], inputs: int | None, seconds: float | None, seed: int, failures: Path
) -> int:
    """Run each target that reads bytes; returns the exit code."""
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed")
        return 0
    readers = [target for target in chosen if target.files]
    failed = 0
    for target in readers:
        limits = ["-runs=-1" if inputs is None else f"-runs={inputs // len(readers)}"]
        if seconds is not None:
            limits.append(f"-max_total_time={max(1, round(seconds / len(readers)))}")
        failed += _in_process(target, [*limits, f"-seed={seed + 1}", f"-max_len={LONGEST}"], failures)
    return 1 if failed else 0


def _in_process(target: Target, flags: Sequence[str], failures: Path) -> bool:
    """Whether a target broke a promise."""
    failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(target.files):
            (Path(corpus) / str(number)).write_bytes(content)
        prefix = f"-artifact_prefix={failures.resolve()}/{target.name}-"
        words = [
            sys.executable,
            "-m",
            "tests.fuzz.guided",
            target.name,
            *flags,
            prefix,
            "-timeout=20",
            corpus,
        ]
        ended = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    told = [line for line in ended.stderr.splitlines() if "Violation" in line or line.startswith("Done")]
    print(f"{target.name:<18} {told[-1] if told else f'exit code {ended.returncode}'}")
    return ended.returncode != 0


def main(arguments: Sequence[str]) -> None:
    """The process of one target: its name, then flags of libFuzzer."""
    import atheris

    with atheris.instrument_imports(include=list(READERS)):
        target, bench = targets()[arguments[0]], Bench()

    def one(data: Any) -> None:
        attempt(target, bytes(data), bench)

    atheris.Setup([sys.argv[0], *arguments[1:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
