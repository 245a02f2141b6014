"""A small comparison that several files of tests read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pahq_plugin.compare.plan import make_plan
from pahq_plugin.compare.run import run_plan

CONTENT: dict[str, Any] = {
    "problems": ["induction"],
    "methods": ["acdc", "unguarded@fp8_e4m3", "act-mag", "random"],
    "thresholds": [0.03, 0.1],
    "test_batches": 1,
}
PLAN = make_plan(CONTENT, Path())
PIECES = 6, 4  # searches, judged methods


run = partial(run_plan, progress=False)


def files(folder: Path) -> dict[str, int]:
    """Every file but the plan, and when it was written."""
    every = (path for path in folder.rglob("*") if path.is_file() and path.name != "plan.json")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in every}
