"""Effects of edges patched alone: on the host, by full forwards, and on the engine that is tested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from auto_circuit.data import PromptDataLoader
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.engines.incremental.alone import AloneEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.models.checks import output_width
from tests.helpers.replay import (
    ABSOLUTE_TOLERANCE,
    RELATIVE_TOLERANCE,
    LossOracle,
    Metric,
    cleared_masks,
    single_effects,
)


def question(
    model: PatchableModel,
    loader: PromptDataLoader,
    metric: Metric | None = None,
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
) -> Question:
    """A question about all edges."""
    prompts = collect_batches(model, loader, batches)
    resolved = resolve_metric(metric, output_width(model, prompts[0].clean))
    return Question(model, loader, prompts, ablation, resolved, edges=canonical_edges(model))


def engine(*arguments: Any, memory: int | None = None, **options: Any) -> AloneEngine:
    """An engine for `question`."""
    return AloneEngine(question(*arguments, **options), memory=memory)


def measured(engine: AloneEngine, edges: Iterable[Edge]) -> dict[Edge, float]:
    """All effects, pass by pass."""
    order = engine.in_turn(list(edges))
    found: list[float] = []
    while len(found) < len(order):
        answers = engine.alone(order[len(found) :])
        assert answers
        found += answers
    return dict(zip(order, found, strict=True))


def on_host(
    model: PatchableModel,
    loader: PromptDataLoader,
    edges: Iterable[Edge],
    metric: Metric = "kl_div",
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
) -> tuple[dict[Edge, float], float]:
    """The effect of each edge by two full forwards on the host, and the loss without any patch."""
    edges = list(edges)
    effects = single_effects(model, loader, edges, metric=metric, ablation=ablation, batches=batches)
    with cleared_masks(model):
        before = LossOracle(model, loader, metric, ablation, batches).loss()
    return dict(zip(edges, effects, strict=True)), before


def wrong(found: dict[Edge, float], truth: tuple[dict[Edge, float], float]) -> Sequence[str]:
    """What differs by more than 1e-4 of an effect and 1e-6 of the loss, or of 1 if that is larger."""
    effects, before = truth
    near = ABSOLUTE_TOLERANCE * max(1.0, abs(before))
    return [
        f"{edge.name} at {edge.seq_idx}: {found[edge]:.9g}, on the host {true:.9g}"
        for edge, true in effects.items()
        if abs(found[edge] - true) > max(near, RELATIVE_TOLERANCE * abs(true))
    ]
