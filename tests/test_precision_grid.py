"""With a guard band the decisions of `pahq` are FP32's, whatever the number format."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

import pahq_plugin as pahq
from tests.helpers.architectures import build, random_architecture
from tests.helpers.replay import replay, threshold_for_share
from tests.test_replay import PROBLEMS

FORMATS = ["fp8_e4m3", "fp8_e5m2", "int8", "bf16"]
THRESHOLDS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
SEEDS = range(5)
SAMPLE = {("greater-than", 3e-3, 1), ("tracr-reverse", 1e-3, 2), ("tracr-xproportion", 1e-2, 3)}
"""What `make test` takes; `make test-full` takes the whole grid."""

GRID = [
    pytest.param(
        problem,
        threshold,
        seed,
        id=f"{problem}-{threshold:g}-seed{seed}",
        marks=[] if (problem, threshold, seed) in SAMPLE else pytest.mark.full,
    )
    for problem in PROBLEMS
    for threshold in THRESHOLDS
    for seed in SEEDS
]

ARCHITECTURES = [
    pytest.param(seed, id=f"seed{seed}", marks=[] if seed < 203 else pytest.mark.full)
    for seed in range(200, 250)
]


def assert_formats_decide_as_fp32(make: Any, question: dict[str, Any]) -> None:
    """Each format keeps the edges that ``acdc`` keeps, or differs only where full host forwards
    tie."""
    model, loader = make()
    exact = pahq.discover(model, loader, method="acdc", **question, progress=False)
    for name in FORMATS:
        precision = pahq.PrecisionConfig(low=name, mlp=name)
        found = pahq.discover(model, loader, precision=precision, **question, progress=False)
        print(name, len(found.circuit), found.stats.re_evaluations, found.stats.guard)
        if found.circuit != exact.circuit:
            fresh_model, fresh_loader = make()
            report = replay(fresh_model, fresh_loader, found.decisions, sample=1.0, **question)
            assert report.agrees and report.n_ties, (name, report)


@pytest.mark.parametrize(("problem", "threshold", "seed"), GRID)
def test_every_format_on_every_problem(problem: str, threshold: float, seed: int) -> None:
    def make() -> Any:
        loaded = pahq.load_problem(problem, seed=seed)
        return loaded.model, loaded.train_loader

    metric = pahq.load_problem(problem, seed=seed).metric
    assert_formats_decide_as_fp32(make, {"threshold": threshold, "metric": metric})


@pytest.mark.parametrize("seed", ARCHITECTURES)
def test_every_format_on_random_architectures(seed: int) -> None:
    """At thresholds that keep 2 to 60 % of the edges."""
    architecture = random_architecture(seed)
    question: dict[str, Any] = {"metric": architecture.metric, "ablation": architecture.ablation}
    threshold, _ = threshold_for_share(*build(architecture), **question)
    assert_formats_decide_as_fp32(lambda: build(architecture), question | {"threshold": threshold})


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_at_most_a_tenth_of_the_edges_is_decided_again(name: str) -> None:
    """Median over the bundled problems and thresholds."""
    shares = []
    for problem in PROBLEMS[:3]:
        loaded = pahq.load_problem(problem)
        for threshold in THRESHOLDS:
            precision = pahq.PrecisionConfig(low=name, mlp=name)
            result = pahq.discover(
                loaded.model,
                loaded.train_loader,
                threshold=threshold,
                precision=precision,
                progress=False,
            )
            shares.append(result.stats.re_evaluations / len(result.decisions))
    print(name, sorted(shares))
    assert median(shares) <= 0.1
