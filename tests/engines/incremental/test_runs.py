"""Rows with any sets of candidates removed against an engine that starts afresh without these edges."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.estimating import EstimatingEngine
from pahq_plugin.engines.incremental.runs import Removals
from pahq_plugin.engines.question import Question
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from tests.helpers.architectures import build, random_architecture
from tests.helpers.fake_engine import edges

SEEDS = [
    *(pytest.param(seed, id=f"seed{seed}") for seed in range(8)),
    *(pytest.param(seed, id=f"seed{seed}", marks=pytest.mark.full) for seed in range(8, 60)),
]


def two_engines(seed: int) -> tuple[EstimatingEngine, EstimatingEngine, Question]:
    """Engines on the same random question in FP64."""
    drawn = replace(random_architecture(seed, max_edges=150), dtype=torch.float64)
    made = []
    for _ in range(2):
        model, loader = build(drawn)
        metric = resolve_metric(drawn.metric, drawn.d_vocab)
        prompts = collect_batches(model, loader, None)
        question = Question(model, loader, prompts, ablation_type(drawn.ablation), metric)
        made.append(EstimatingEngine(question))
    return made[0], made[1], question


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_are_those_of_states_reached_afresh(seed: int) -> None:
    """Through all stages: random sets on the rows, one of which becomes the present state."""
    engine, fresh, question = two_engines(seed)
    draw, removed = random.Random(seed), []
    order, compared = canonical_edges(question.model), 0
    while order:
        candidates = engine.of_one_stage(order)
        order = order[len(candidates) :]
        gone = np.array([[draw.random() < 0.4 for _ in candidates] for _ in range(4)])
        losses = engine.losses(candidates, engine.changing(candidates), gone)
        assert losses is not None
        names = [by[0] for by in zip(candidates, strict=True)]
        for row, loss in zip(gone, losses, strict=True):
            fresh.restore([*removed, *(edge for edge, out in zip(names, row, strict=True) if out)])
            assert loss == pytest.approx(fresh.present_loss, rel=1e-7, abs=1e-10)
            compared += 1
        chosen = draw.randrange(4)
        out = [edge for edge, is_gone in zip(candidates, gone[chosen], strict=True) if is_gone]
        before = engine.evaluations
        engine.remove(out)
        assert engine.evaluations == before, "a row of the pass becomes the present state"
        assert engine.present_loss == losses[chosen]
        removed += out
    assert compared >= 12


def test_equal_rows_are_run_once_and_empty_ones_not_at_all() -> None:
    some = edges(3)
    gone = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], dtype=bool)
    removals = Removals(some, [True, False, True], gone)
    assert [removals.row(number) for number in range(5)] == [None, 0, 0, None, 1]
    assert removals.gone.tolist() == [[True, False, False], [True, False, True]]
    assert removals.n_rows == 2
    assert removals.is_inert([some[1]]) and not removals.is_inert(some[:2])
    assert removals.row_without(some[:2]) == 0 and removals.row_without([some[2]]) is None
    assert removals.row_without([*some, edges(4)[3]]) is None
