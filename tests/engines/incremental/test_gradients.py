"""Derivatives along edges against the host's own: autograd through its patch masks, from the tokens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from auto_circuit.utils.graph_utils import patch_mode, train_mask_mode
from torch import Tensor

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.estimating import EstimatingEngine
from pahq_plugin.engines.incremental.gradients import Backward, Point
from pahq_plugin.engines.question import Question
from pahq_plugin.host import Edge, PatchableModel
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.patching import PatchBatch, prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric, row_losses
from tests.helpers.architectures import Architecture, build, random_architecture

SEEDS = [
    *(pytest.param(seed, id=f"seed{seed}") for seed in range(8)),
    *(pytest.param(seed, id=f"seed{seed}", marks=pytest.mark.full) for seed in range(8, 80)),
]


def question_of(architecture: Architecture) -> Question:
    model, loader = build(architecture)
    metric = resolve_metric(architecture.metric, architecture.d_vocab)
    kind = ablation_type(architecture.ablation)
    return Question(model, loader, collect_batches(model, loader, None), kind, metric)


def some_edges(edges: list[Edge], seed: int) -> list[Edge]:
    """None of the edges, or about a third or two thirds of them."""
    draw = random.Random(seed)
    share = draw.choice([0.0, 0.3, 0.7])
    return [edge for edge in edges if draw.random() < share]


def set_masks(model: PatchableModel, removed: list[Edge], value: float = 1.0) -> None:
    for mask in model.patch_masks.values():
        mask.data.zero_()
    for edge in removed:
        edge.patch_mask(model).data[edge.patch_idx] = value


def host_loss(question: Question, prepared: PatchBatch) -> Tensor:
    """The host's loss with its masks as they are."""
    model = question.model
    with patch_mode(model, prepared.ablated.clone()):
        logits = model(prepared.batch.clean)[model.out_slice]
    losses = row_losses(*question.metric, logits[None], prepared.logits.clone(), prepared.batch)
    return losses[0]


def host_slopes(question: Question, prepared: PatchBatch) -> dict[str, Tensor]:
    """The host's derivatives by its patch masks, by destination module."""
    model = question.model
    with torch.enable_grad(), train_mask_mode(model):
        loss = host_loss(question, prepared)
        names = list(model.patch_masks)
        found = torch.autograd.grad(loss, list(model.patch_masks.values()), allow_unused=True)
    empty = (torch.zeros_like(mask) for mask in model.patch_masks.values())
    return {
        name: (zero if slope is None else slope).double()
        for name, zero, slope in zip(names, empty, found, strict=True)
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_slopes_are_those_of_the_hosts_masks(seed: int) -> None:
    question = question_of(random_architecture(seed, max_edges=200))
    edges = canonical_edges(question.model)
    removed = some_edges(edges, seed)
    engine = EstimatingEngine(question)
    engine.restore(removed)
    prepared = prepare(question.model, question.loader, list(question.prompts), question.ablation)
    set_masks(question.model, removed)
    kept = [edge for edge in edges if edge not in set(removed)]
    work_bytes = random.Random(seed).choice([1, 2**16, 2**24])  # one head at a time, or more
    for i, batch in enumerate(prepared):
        slopes = host_slopes(question, batch)
        largest = max(float(slope.abs().max()) for slope in slopes.values())
        # Two lines, the second one with probes, must not disturb each other.
        readout = engine._readouts[i]
        normals = readout.normals(1, torch.Generator().manual_seed(seed)) if readout.curved else None
        points = [Point(), Point()]
        along = [
            Backward(engine._states[i], readout, points, normals, work_bytes).along_edges(at)
            for at in range(len(engine._graph.stages))
        ]
        for edge in kept:
            at, index = engine._graph.index(edge)
            expected = float(slopes[edge.dest.module_name][edge.patch_idx])
            for line in (0, 1):
                found = float(along[at][(line, slice(None), *index)].double().sum())
                assert abs(found - expected) <= 1e-4 * largest + 1e-7, (edge, found, expected)


def test_slopes_are_those_of_finite_differences() -> None:
    drawn = random_architecture(5, max_edges=60)
    question = question_of(replace(drawn, dtype=torch.float64, metric="kl_div"))
    model, edges = question.model, canonical_edges(question.model)
    removed = edges[::3]
    engine = EstimatingEngine(question)
    engine.restore(removed)
    (batch,) = prepare(model, question.loader, list(question.prompts), question.ablation)[:1]
    step, checked = 1e-4, 0
    for edge in [edge for edge in edges if edge not in removed][:20]:
        losses = []
        for value in (step, -step):
            set_masks(model, removed)
            edge.patch_mask(model).data[edge.patch_idx] = value
            with torch.no_grad(), train_mask_mode(model):
                losses.append(float(host_loss(question, batch)))
        expected = (losses[0] - losses[1]) / (2 * step)
        at, index = engine._graph.index(edge)
        along = Backward(engine._states[0], engine._readouts[0], [Point()], None, 2**24).along_edges(at)
        found = float(along[(0, slice(None), *index)].sum())
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
        checked += abs(expected) > 1e-6
    assert checked >= 5


@pytest.mark.parametrize("seed", range(6))
def test_slopes_at_a_row_are_those_after_its_removals(seed: int) -> None:
    drawn = random_architecture(seed, max_edges=150)
    question = question_of(replace(drawn, dtype=torch.float64))
    engine = EstimatingEngine(question)
    order = canonical_edges(question.model)
    candidates = engine.of_one_stage(order)
    while len(candidates) < 4:
        order = order[len(candidates) :]
        candidates = engine.of_one_stage(order)
    changing = engine.changing(candidates)
    draw = random.Random(seed)
    gone = [draw.random() < 0.5 for _ in candidates]
    engine.losses(candidates, changing, torch.tensor([[False] * len(gone), gone]).numpy())
    ahead = engine.slopes(candidates, 1)
    assert not ahead.probes.any()
    engine.remove([edge for edge, is_gone in zip(candidates, gone, strict=True) if is_gone])
    left = [i for i, is_gone in enumerate(gone) if not is_gone]
    after = engine.slopes([candidates[i] for i in left])
    assert after.first == pytest.approx(ahead.first[left], rel=1e-6, abs=1e-12)
