"""What the engine tells a search with estimates beside losses and derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.estimating import EstimatingEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ModelError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from tests.helpers.architectures import build, random_architecture


def engine_of(seed: int = 3, metric: Any = None, **changes: Any) -> tuple[EstimatingEngine, list]:
    drawn = replace(random_architecture(seed, max_edges=150), **changes)
    model, loader = build(drawn)
    metric = resolve_metric(metric or drawn.metric, drawn.d_vocab)
    prompts = collect_batches(model, loader, None)
    question = Question(model, loader, prompts, ablation_type(drawn.ablation), metric)
    return EstimatingEngine(question), canonical_edges(model)


def test_stages_follow_the_layers() -> None:
    engine, order = engine_of(parallel_attn_mlp=False)
    layers = []
    while order:
        stage = engine.of_one_stage(order)
        assert len({edge.dest.layer for edge in stage}) == 1
        layers.append(stage[0].dest.layer)
        order = order[len(stage) :]
    assert layers == sorted(layers, reverse=True) and len(set(layers)) == len(layers)


def test_nothing_changes_behind_a_destination_that_nothing_reads() -> None:
    engine, order = engine_of()
    output = engine.of_one_stage(order)
    engine.remove(output)
    assert not any(engine.changing(engine.of_one_stage(order[len(output) :])))


def test_probes_and_slopes_are_the_same_at_each_call() -> None:
    engine, order = engine_of(metric="kl_div")
    stage = engine.of_one_stage(order)
    one, other = engine.slopes(stage), engine.slopes(stage)
    assert np.array_equal(one.first, other.first) and np.array_equal(one.probes, other.probes)
    assert one.probes.any() and engine.gradients >= 4


def answer(logits: torch.Tensor, clean: torch.Tensor, batch: Any) -> torch.Tensor:
    """A loss of whole numbers, without a gradient."""
    return (logits.argmax(dim=-1) != clean.argmax(dim=-1)).double().flatten(1).mean(dim=1)


def at_a_root(logits: torch.Tensor, clean: torch.Tensor, batch: Any) -> torch.Tensor:
    """A loss whose gradient is not finite."""
    return (0 * logits).flatten(1).sum(dim=1).sqrt()


@pytest.mark.parametrize(
    ("metric", "objection"),
    [
        (answer, "a metric that cannot be differentiated"),
        (at_a_root, "a metric whose gradient is not finite"),
    ],
)
def test_metrics_without_a_gradient_are_named(metric: Any, objection: str) -> None:
    found = engine_of(metric=metric)[0].objection_to_slopes()
    assert found is not None and found.startswith(objection)
    assert engine_of()[0].objection_to_slopes() is None


def test_out_of_memory_makes_the_next_pass_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, order = engine_of()
    stage = engine.of_one_stage(order)
    changing, before = engine.changing(stage), engine.fitting_rows(stage)

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine, "_run", full)
    gone = np.ones((1, len(stage)), dtype=bool)
    assert engine.losses(stage, changing, gone) is None
    assert engine.fitting_rows(stage) == before // 2
    with pytest.raises(ModelError, match="not enough memory"):
        for _ in range(20):
            engine.losses(stage, changing, gone)
