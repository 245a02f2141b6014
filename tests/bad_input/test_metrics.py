"""Metrics that do not fit the model, or return no loss, are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.errors import MetricError, PahqWarning
from tests.helpers.refused import refused_untouched
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


def single_output() -> PatchableModel:
    return small_model(d_vocab_out=1)


def test_kl_div_of_a_single_output_is_refused() -> None:
    model = single_output()
    refused_untouched(
        MetricError, ("kl_div",), model, lambda: discover(model, loader(), metric="kl_div")
    )
    assert discover(model, loader(), method="acdc").settings["metric"] == "mse"


def returns(value: Callable[[Tensor], object]) -> Callable[..., Any]:
    def loss(logits: Tensor, clean_logits: Tensor, batch: object) -> object:
        return value(logits)

    return loss


BAD_METRICS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "NaN": (lambda x: x[:, 0] * math.nan, "nan"),
    "too few": (lambda x: x[:2, 0], "[2]"),
}
"""Every other value is tried in `tests/test_metrics.py`."""


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("method", ["pahq", "acdc"])
@pytest.mark.parametrize("bad", BAD_METRICS)
def test_what_no_metric_returns_is_refused(bad: str, method: str, engine: str) -> None:
    value, word = BAD_METRICS[bad]
    model = small_model()
    refused_untouched(
        MetricError,
        ("loss", word),
        model,
        lambda: discover(model, loader(), method=method, engine=engine, metric=returns(value)),
    )


@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_a_constant_metric_is_warned_of(method: str) -> None:
    with pytest.warns(PahqWarning, match="no edge"):
        result = discover(small_model(), loader(), method=method, metric=returns(lambda x: 0 * x[:, 0]))
    assert len(result.circuit) == 0


def test_an_ablation_that_changes_nothing_is_warned_of() -> None:
    """The mean over a single prompt is that prompt."""
    with pytest.warns(PahqWarning, match="ablation"):
        discover(small_model(), loader(prompts=1), method="acdc", ablation="tokenwise_mean_clean")


BROKEN: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "two arguments": (lambda logits, clean: clean, ("TypeError", "(logits, clean_logits, batch)")),
    "no such field": (lambda x, clean, batch: batch.answer, ("AttributeError", "answer", "[4, ")),
    "another shape": (lambda x, c, batch: x.gather(-1, torch.zeros(1).long()), ("RuntimeError",)),
}


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_metric_that_fails_is_named(broken: str, engine: str) -> None:
    metric, words = BROKEN[broken]
    model = small_model()
    refused_untouched(
        MetricError,
        ("metric '<lambda>' failed with", *words),
        model,
        lambda: discover(model, loader(), method="acdc", engine=engine, metric=metric),
    )


@pytest.mark.parametrize("engine", ["host", "incremental"])
def test_a_metric_that_fails_late_names_the_edge(engine: str) -> None:
    """NaN as soon as any edge is patched: the clean run is fine."""
    model = small_model()

    def late(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        change = (logits - clean_logits).abs().amax(dim=-1)
        return torch.where(change > 1e-4, torch.nan, change)

    refused_untouched(
        MetricError,
        ("late", "nan", "Resid End"),
        model,
        lambda: discover(model, loader(), method="acdc", engine=engine, metric=late),
    )
