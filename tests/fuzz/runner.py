"""Many inputs for every target, counted, and what broke a promise written to a folder."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.bench import Bench, Violation
from tests.fuzz.target import Target, attempt

CHUNK = 500
"""Inputs drawn with one seed; hypothesis gets slow where it has to remember many."""


@dataclass
class Count:
    """What one target went through.

    Attributes:
        name: of the target.
        inputs: how many; ``accepted``: how many of them the reader took.
        violations: kinds of them, each with the first message and the first input.
        slowest: CPU seconds; ``seconds``: wall-clock time of all.
    """

    name: str
    inputs: int = 0
    accepted: int = 0
    failed: int = 0
    violations: dict[str, tuple[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0
    seconds: float = 0.0

    def line(self) -> str:
        """As a row of the table."""
        return (
            f"{self.name:<18} {self.inputs:>9,} {self.accepted:>9,} {self.failed:>10,} "
            f"{self.slowest:>9.3f} {self.seconds:>9.1f}"
        )


HEADING = (
    f"{'target':<18} {'inputs':>9} {'accepted':>9} {'violations':>10} {'slowest s':>9} {'all s':>9}"
)


def run(
    targets: Sequence[Target],
    *,
    inputs: int | None = None,
    seconds: float | None = None,
    first_seed: int = 0,
    say: Callable[[str], None] = print,
) -> list[Count]:
    """Run targets with so many inputs, or for so long, in all; the inputs follow from the seed."""
    say(HEADING)
    shares = sum(target.share for target in targets)
    counts = []
    for target in targets:
        part = target.share / shares
        most = None if inputs is None else round(inputs * part) + 1
        until = None if seconds is None else time.monotonic() + seconds * part
        counts.append(run_target(target, most, until, first_seed))
        say(counts[-1].line())
        for what, _ in list(counts[-1].violations.values())[:25]:
            say(f"    {' '.join(what.split())}")
    return counts


def run_target(target: Target, inputs: int | None, until: float | None, first_seed: int) -> Count:
    """One target, with the limit that comes first."""
    count, started, chunk = Count(target.name), time.monotonic(), 0
    bench = Bench()
    try:
        while not _done(count, inputs, until):
            left = CHUNK if inputs is None else min(CHUNK, inputs - count.inputs)
            _draw(target, bench, count, left, f"{first_seed}/{target.name}/{chunk}", until)
            chunk += 1
    finally:
        bench.close()
    count.slowest, count.seconds = bench.slowest, time.monotonic() - started
    return count


def _done(count: Count, inputs: int | None, until: float | None) -> bool:
    enough = inputs is not None and count.inputs >= inputs
    return enough or (until is not None and time.monotonic() >= until)


def _draw(target: Target, bench: Bench, count: Count, most: int, of: str, until: float | None) -> None:
    @seed(of)
    @settings(
        max_examples=most,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def each(content: Any) -> None:
        if _done(count, None, until):
            return
        count.inputs += 1
        try:
            count.accepted += attempt(target, content, bench)
        except Violation as violation:
            count.failed += 1
            what = re.sub("[0-9]+", "0", " ".join(str(violation).split()))[:60]
            count.violations.setdefault(what, (str(violation)[:300], content))

    each()


def write_failures(counts: Sequence[Count], folder: Path) -> int:
    """Each kind of violation with its first input: a file of bytes, or the value as Python writes it."""
    written = 0
    shutil.rmtree(folder, ignore_errors=True)
    for count in counts:
        for number, (what, content) in enumerate(count.violations.values()):
            folder.mkdir(parents=True, exist_ok=True)
            stem = folder / f"{count.name}-{number}"
            data = content if isinstance(content, bytes) else repr(content).encode("utf-8", "replace")
            stem.with_suffix(".input").write_bytes(data)
            stem.with_suffix(".txt").write_text(what + "\n", encoding="utf-8", errors="replace")
            written += 1
    return written
