"""What a result says of the search: settings and stats."""

from __future__ import annotations

import math

import pytest

import pahq_plugin as pahq
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader


def test_the_settings_say_what_was_done() -> None:
    model, prompts = small_edges(), loader()
    chosen = pahq.PrecisionConfig(low="fp8_e5m2", mlp="fp32", guard=0.5)
    result = discover(model, prompts, threshold=0.02, precision=chosen, batches=None, seed=4)
    settings = dict(result.settings)
    precision = settings.pop("precision")
    assert precision["low"] == "fp8_e5m2" and precision["guard"] == 0.5
    assert settings == {
        "method": "pahq", "scored": False, "ablation": "resample", "batches": None, "seed": 4,
        "threshold": 0.02, "metric": "kl_div", "order": "canonical",
        "engine": "incremental",
    }  # fmt: skip
    assert discover(model, prompts, method="acdc").settings["precision"] is None


@pytest.mark.parametrize("engine", ["host", "incremental"])
def test_the_stats_of_a_search(engine: str) -> None:
    model, prompts = small_edges(), loader()
    exact, mixed = (
        discover(model, prompts, method=method, threshold=0.003, engine=engine).stats
        for method in ("acdc", "pahq")
    )
    assert exact.evaluations > 10 and mixed.evaluations > exact.evaluations
    assert exact.re_evaluations == 0 < mixed.re_evaluations <= len(model.edges)
    assert exact.guard == {} and set(mixed.guard) == {"relative", "floor", "widened", "drift"}
    for stats in (exact, mixed):
        assert stats.seconds > 0 and stats.forward_equivalents > 0
        assert stats.peak_bytes > 2**20
        assert isinstance(stats.evaluations, int) and isinstance(stats.peak_bytes, int)


def test_re_evaluated_edges_are_exact() -> None:
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, threshold=0.3)  # keeps few: where most are kept none is screened
    exact = sum(decision.exact for decision in result.decisions)
    assert 0 < exact < len(result.decisions)
    all_exact = pahq.PrecisionConfig(low="int8", guard=math.inf)
    everything = discover(model, prompts, threshold=0.003, precision=all_exact)
    assert all(decision.exact for decision in everything.decisions)
    assert (everything.stats.re_evaluations, everything.stats.guard) == (0, {})  # nothing was screened


def test_scoring_methods_evaluate_nothing() -> None:
    stats = discover(small_edges(), loader(), method="eap").stats
    assert (stats.evaluations, stats.re_evaluations, stats.guard) == (0, 0, {})
    assert stats.seconds > 0
