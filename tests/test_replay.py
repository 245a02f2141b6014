"""Replay oracle on the bundled and Tracr problems: every decision of `acdc` and `pahq`, taken again
with nothing but the host's `patch_mode` and full FP32 forwards."""

from __future__ import annotations

import pytest

import pahq_plugin as pahq
from tests.helpers.replay import replay

PROBLEMS = ["ioi", "greater-than", "induction", "tracr-reverse", "tracr-xproportion"]
THRESHOLDS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
SAMPLE = {("tracr-reverse", 1e-3), ("tracr-xproportion", 1e-2)}
"""What `make test` takes; `make test-full` takes the whole grid."""

KEEPS_NONE = {("tracr-xproportion", 1e-1)}
"""Here the circuit is empty, in every engine and for the host; anywhere else that proves nothing."""

GRID = [
    pytest.param(
        problem,
        threshold,
        seed,
        id=f"{problem}-{threshold:g}-seed{seed}",
        marks=[] if (problem, threshold) in SAMPLE and seed == 0 else pytest.mark.full,
    )
    for problem in PROBLEMS
    for threshold in THRESHOLDS
    for seed in range(3)
]


@pytest.mark.parametrize(("problem", "threshold", "seed"), GRID)
def test_every_decision_is_that_of_full_host_forwards(problem: str, threshold: float, seed: int) -> None:
    loaded = pahq.load_problem(problem, seed=seed)
    fresh = pahq.load_problem(problem, seed=seed)
    for method in ("acdc", "pahq"):
        result = pahq.discover(
            loaded.model,
            loaded.train_loader,
            method=method,
            threshold=threshold,
            metric=loaded.metric,
            progress=False,
        )
        report = replay(
            fresh.model,
            fresh.train_loader,
            result.decisions,
            threshold=threshold,
            metric=loaded.metric,
        )
        print(problem, method, report)
        assert report.agrees, report
        assert (report.n_kept == 0) == ((problem, threshold) in KEEPS_NONE), report
        assert report.share_kept <= 0.6, report


@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("problem", ["tracr-xproportion", pytest.param("ioi", marks=pytest.mark.full)])
def test_the_host_engine_takes_the_same_decisions(problem: str, method: str) -> None:
    loaded = pahq.load_problem(problem)
    taken = [
        pahq.discover(
            loaded.model,
            loaded.train_loader,
            method=method,
            threshold=1e-3,
            metric=loaded.metric,
            engine=engine,
            progress=False,
        ).decisions
        for engine in ("incremental", "host")
    ]
    assert [(d.edge, d.kept) for d in taken[0]] == [(d.edge, d.kept) for d in taken[1]]
