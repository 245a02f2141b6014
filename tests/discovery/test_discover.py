"""Every ablation, metric, order and engine, against the sequential algorithm."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from auto_circuit.types import AblationType
from torch import Tensor

import pahq_plugin as pahq
from pahq_plugin.choices import ENGINES
from tests.helpers.architectures import build
from tests.helpers.replay import Decision, canonical_order, sequential_acdc, threshold_for_share
from tests.helpers.searches import case, discover, small_edges
from tests.helpers.small import loader, tokens


def assert_agrees(result: pahq.Discovery, expected: list[Decision], threshold: float) -> None:
    """The same decisions in the same order; ties aside, and some of each kind."""
    assert [d.edge for d in result.decisions] == [d.edge for d in expected]
    kept = sum(d.kept for d in expected)
    assert 0.02 <= kept / len(expected) <= 0.6
    for ours, theirs in zip(result.decisions, expected, strict=True):
        assert ours.effect == pytest.approx(theirs.effect, rel=1e-3, abs=3e-6), ours.edge
        tie = abs(theirs.effect - threshold) < max(1e-6, 1e-4 * threshold)
        assert tie or ours.kept == theirs.kept, ours.edge
        assert ours.exact


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("ablation", list(AblationType), ids=lambda kind: kind.name)
def test_every_ablation_type(ablation: AblationType, engine: str) -> None:
    model, prompts = build(case(ablation=ablation, dtype=torch.float32, metric="kl_div"))
    threshold, expected = threshold_for_share(model, prompts, ablation=ablation)
    result = discover(
        model, prompts, method="acdc", threshold=threshold, ablation=ablation, engine=engine
    )
    assert_agrees(result, expected, threshold)
    assert result.settings["ablation"] == ablation.name.lower()
    named = discover(
        model, prompts, method="acdc", threshold=threshold, ablation=ablation.name, engine=engine
    )
    assert named.decisions == result.decisions


def largest_change(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
    """A loss of one's own, ``[prompt]``."""
    return (logits - clean_logits).abs().flatten(start_dim=1).amax(dim=1)


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("metric", ["kl_div", "mse", "logit_diff", largest_change])
def test_every_metric(metric: Any, engine: str) -> None:
    model, prompts = build(case(ablation=AblationType.RESAMPLE, dtype=torch.float32))
    threshold, expected = threshold_for_share(model, prompts, metric=metric)
    result = discover(model, prompts, method="acdc", threshold=threshold, metric=metric, engine=engine)
    assert_agrees(result, expected, threshold)
    name = metric if isinstance(metric, str) else "largest_change"
    assert result.settings["metric"] == name


@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("batches", [1, 2, None])
def test_batches_are_averaged_over(batches: int | None, method: str) -> None:
    model, prompts = build(case(5, ablation=AblationType.RESAMPLE, dtype=torch.float32))
    assert len(prompts) == 2
    threshold, expected = threshold_for_share(model, prompts, batches=batches)
    result = discover(model, prompts, method=method, threshold=threshold, batches=batches)
    if method == "acdc":
        assert_agrees(result, expected, threshold)
    assert [d.kept for d in result.decisions] == [d.kept for d in expected]
    one = discover(model, prompts, method="acdc", threshold=threshold, batches=1)
    same = [d.effect for d in one.decisions] == [d.effect for d in result.decisions]
    assert same == (batches == 1 and method == "acdc")  # estimates take other rows, rounded otherwise


def test_an_order_of_ones_own() -> None:
    model, prompts = small_edges(), loader()
    order = canonical_order(model)
    random.Random(2).shuffle(order)
    threshold = 0.03
    expected = sequential_acdc(model, prompts, order, threshold=threshold)
    for engine in ("host", "incremental"):
        result = discover(model, prompts, method="acdc", threshold=threshold, order=order, engine=engine)
        assert_agrees(result, expected, threshold)
        assert result.settings["order"] == "given"
    canonical = discover(model, prompts, method="acdc", threshold=threshold)
    assert [d.edge for d in canonical.decisions] == canonical_order(model)
    assert canonical.settings["order"] == "canonical"
    assert {d.edge: d.effect for d in canonical.decisions} != {
        d.edge: d.effect for d in result.decisions
    }


def test_the_canonical_order_scores_host_methods_too() -> None:
    model = small_edges()
    result = discover(model, loader(), method="Official Circuit", true_edges=set())
    assert [d.edge for d in result.decisions] == canonical_order(model)


@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_every_engine_takes_the_same_decisions(method: str) -> None:
    model, prompts = small_edges(), loader()
    results = [discover(model, prompts, method=method, threshold=0.003, engine=name) for name in ENGINES]
    kept = [[d.kept for d in result.decisions] for result in results]
    assert kept[0] == kept[1] == kept[2] and 0 < sum(kept[0]) < len(kept[0])


def test_corrupt_prompts_that_equal_the_clean_ones_leave_no_circuit() -> None:
    prompts = loader()
    prompts.dataset.corrupt_prompts = tokens()  # type: ignore[attr-defined]
    with pytest.warns(pahq.PahqWarning, match="no edge has any effect: clean and corrupt prompts may"):
        result = discover(small_edges(), prompts, method="acdc", threshold=1e-6)
    assert result.circuit == set()
    assert all(decision.effect == pytest.approx(0, abs=1e-6) for decision in result.decisions)


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
