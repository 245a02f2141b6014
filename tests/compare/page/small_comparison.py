"""A comparison that takes seconds, for tests of the report."""

from __future__ import annotations

from pathlib import Path

from pahq_plugin.compare.page.page import Report
from pahq_plugin.compare.page.write import write_report
from pahq_plugin.compare.plan import Plan, make_plan
from pahq_plugin.compare.run import run_plan

PROBLEM = "greater-than"
SETTINGS = {
    "title": "A small <comparison> & more",
    "note": "Two thresholds.",
    "problems": [{"name": "greater-than", "batch_size": 4}],
    "methods": ["pahq", "acdc", "eap", "unguarded@int4", "ground-truth"],
    "thresholds": [0.003, 0.03],
    "test_batches": 2,
}


def small_plan() -> Plan:
    """Ground truth is not known there, and refused."""
    return make_plan(SETTINGS, Path())


def compare(folder: Path) -> Report:
    """Run it and write its report."""
    plan = small_plan()
    outcome = run_plan(plan, folder, processes=2, progress=False)
    assert not outcome.failed
    return write_report(plan, folder, outcome, "a test", progress=False)
