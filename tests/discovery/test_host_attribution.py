"""Attribution with hooks on the host model, on a model that is no transformer and by hand."""

from __future__ import annotations

import pytest
import torch

from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import logit_diff, mse
from tests.helpers.architectures import micro_model


def test_scores_of_the_micro_model_by_hand() -> None:
    """Prompts 0 A against 0 B: the logits are (4, 3), and the loss is second minus first logit.

    Edges into the output change it by (ablated - clean): Resid Start from (2, 0) to (0, 2), A0.0 from
    (2, 0) to (0, 0), A0.1 from (0, 3) to (0, -1). Values are linear: A0.0 takes its half of -2, doubled,
    from the first logit; A0.1 takes 3/4 (2 x0 - x1) of (-2, 2).
    """
    model, loader = micro_model()
    batches = collect_batches(model, loader, 1)
    question = Question(model, loader, batches, AblationType.RESAMPLE, ("logit_diff", logit_diff))
    with borrowed(model):
        scores = attribute_by_hooks(question, "clean", 1)
    found = {edge.name: float(edge.prune_score(scores)) for edge in model.edges}
    expected = {
        "Resid Start->Resid End": 4, "A0.0->Resid End": 2, "A0.1->Resid End": -4,
        "Resid Start->A0.0.V": 2, "Resid Start->A0.1.V": -4.5,
        "Resid Start->A0.0.Q": 0, "Resid Start->A0.0.K": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_distance_is_0_at_the_clean_state_and_not_before_it() -> None:
    model, loader = micro_model()
    batches = collect_batches(model, loader, 1)
    question = Question(model, loader, batches, AblationType.ZERO, ("mse", mse))
    with borrowed(model):
        clean, between = (attribute_by_hooks(question, "inputs", steps) for steps in (1, 2))
    assert not any(bool(values.any()) for values in clean.values())
    assert any(bool(values.any()) for values in between.values())
    assert all(bool(torch.isfinite(values).all()) for values in between.values())
