"""Searches whose weights and caches come and go, against the same searches in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.engine.budget import budget_for
from pahq_plugin.engine.incremental import IncrementalEngine
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.model import borrowed
from pahq_plugin.host.patching import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.placement.place import placed
from pahq_plugin.placement.plan import Plan, plan_memory, units_of
from tests.helpers.architectures import build, random_architecture

CPU = torch.device("cpu")


def nothing_stays(model: Any, prompts: Any) -> Plan:
    """A plan by which every weight and cache comes and goes, two attention layers or MLPs at a time."""
    plan = plan_memory(model, prompts, 10**12, None, budget_for(CPU).together)
    largest = max(unit.nbytes for unit in units_of(model))
    return replace(plan, stay=frozenset(), window=2 * largest, caches_stay=False)


def effects(
    model: Any, loader: Any, ablation: AblationType, plan: Plan | None, copies: bool, low: bool
) -> list[float]:
    """Effects of groups of candidates, every third of which is removed."""
    prompts = collect_batches(model, loader, None)
    metric = resolve_metric(None, model.cfg.d_vocab_out)
    precision = pahq.PrecisionConfig(low="int8", mlp="int8", kernel="eager") if low else None
    found: list[float] = []
    edges = canonical_edges(model)
    with borrowed(model):
        if plan is None:
            engine = IncrementalEngine(model, loader, prompts, ablation, metric, precision)
            return _walk(engine, edges, found)
        with placed(model, plan, CPU, copies=copies) as placement:
            engine = IncrementalEngine(
                model, loader, prompts, ablation, metric, precision, placement=placement
            )
            return _walk(engine, edges, found)
    return found


def _walk(engine: IncrementalEngine, edges: list[Any], found: list[float]) -> list[float]:
    done = 0
    while done < len(edges):
        rest = edges[done : done + 40]
        some = engine.effects(rest, [False] * len(rest), exact=not engine.screens)
        found += some
        engine.remove([edge for i, edge in enumerate(rest[: len(some)]) if (done + i) % 3])
        done += len(some)
    engine.restore([edge for i, edge in enumerate(edges) if i % 3])
    return [*found, engine.present_loss or 0.0]


ABLATIONS = [AblationType.RESAMPLE, AblationType.ZERO, AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT]


@pytest.mark.parametrize("copies", [False, True], ids=["mapped", "copied"])
@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=[] if seed < 6 else pytest.mark.full) for seed in range(60)],
)
def test_every_effect_is_the_same(seed: int, copies: bool) -> None:
    """Bit for bit. Weights that are copied are empty while they are away, so that a product which
    forgot to ask for one would not even have the right shape."""
    architecture = random_architecture(1000 + seed, max_edges=400)
    ablation, low = ABLATIONS[seed % 3], bool(seed % 2)
    model, loader = build(architecture)
    expected = effects(model, loader, ablation, None, False, low)
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    plan = nothing_stays(model, collect_batches(model, loader, None))
    assert effects(model, loader, ablation, plan, copies, low) == expected
    for name, parameter in model.named_parameters():
        same, address, values = before[name]
        assert parameter is same and torch.equal(parameter, values), name
        assert parameter.data_ptr() == address or not copies, name
        parameter.data += 0  # ordinary memory again, that may be written to
    assert not any(module._forward_pre_hooks for module in model.modules())
