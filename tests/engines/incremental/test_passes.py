"""Removals that are put off are exact: random searches in few bits against an FP32 engine that starts
again from the clean state and removes the same edges at once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host import Edge
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.architectures import Architecture, build, random_architecture

INT8 = PrecisionConfig(low="int8", mlp="int8")


def architecture_of(seed: int, **changes: Any) -> Architecture:
    """A random one of a few dozen edges in FP64: rounding is some 1e-16 of what counts, so that any
    trace of few bits, or of an edge too many or too few, shows."""
    drawn = random_architecture(seed, max_edges=90)
    least = {"n_layers": max(2, drawn.n_layers), "n_heads": max(2, drawn.n_heads)}
    return replace(drawn, **{"dtype": torch.float64, **least, **changes})


class Walk:
    """A search whose decisions are drawn at random, and the same edges removed at once.

    Args:
        architecture: the model and the question.
        seed: of what is drawn.
        precision: to screen in.
        memory: bytes for the rows of one pass.

    Attributes:
        compared: how many losses of states, and how many settled effects, have been compared.
        waited: how often removed edges were put off.
    """

    def __init__(
        self,
        architecture: Architecture,
        seed: int,
        precision: PrecisionConfig = INT8,
        memory: int | None = None,
    ) -> None:
        self.compared = {"losses": 0, "effects": 0}
        self.waited = 0
        self._engine = _engine(architecture, precision, memory)
        self._fresh = _engine(architecture, None, None)
        self._order = canonical_edges(build(architecture)[0])
        self._decided: list[tuple[Edge, bool]] = []  # the edge, and whether it is kept
        self._draw = random.Random(seed)
        self._tolerance: dict[str, Any] = (
            {"rel": 1e-8, "abs": 1e-11}
            if architecture.dtype is torch.float64
            else {"rel": 1e-5, "abs": 1e-6}  # losses near 1 in FP32
        )

    def run(self) -> None:
        """Decide every edge; now and then catch up, or go back."""
        restores = 3
        while len(self._decided) < len(self._order):
            self._step()
            self.waited += self._engine.present_loss is None
            if self._draw.random() < 0.15:
                self._check_loss()
            elif restores and self._draw.random() < 0.1:
                restores -= 1
                self._go_back()
        self._check_loss()

    def _removed(self) -> list[Edge]:
        return [edge for edge, kept in self._decided if not kept]

    def _step(self) -> None:
        """As `pahq_plugin.discovery.acdc.Sweep`: screen, settle some, decide, remove."""
        at, draw, engine = len(self._decided), self._draw, self._engine
        candidates = self._order[at : at + engine.lookahead]
        predicted = [draw.random() < 0.3 for _ in candidates]
        exact = draw.random() < 0.15
        answered = len(engine.effects(candidates, predicted, exact=exact))
        assert 1 <= answered <= len(candidates)
        size = draw.randint(1, min(answered, draw.choice((3, answered))))
        wanted = [draw.random() < 0.3 for _ in range(size)]
        if any(wanted) and not exact:
            size = self._settle(candidates[:size], predicted[:size], wanted)
        kept = predicted[:size]
        if draw.random() < 0.4:  # the last one goes otherwise than predicted
            kept[-1] = not kept[-1]
        self._decided += zip(candidates[:size], kept, strict=True)
        engine.remove([edge for edge, is_kept in self._decided[at:] if not is_kept])

    def _settle(self, candidates: list[Edge], predicted: list[bool], wanted: list[bool]) -> int:
        """Compare settled effects; returns how many candidates can be decided."""
        found = self._engine.settle(candidates, predicted, wanted)
        asked = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        assert 1 <= len(found) <= len(asked)
        for i, effect in zip(asked, found, strict=False):
            ahead = [e for e, kept in zip(candidates[:i], predicted, strict=False) if not kept]
            self._fresh.restore([*self._removed(), *ahead])
            expected = self._fresh.effects([candidates[i]], [False], exact=True)[0]
            assert effect == pytest.approx(expected, **self._tolerance), candidates[i]
            self.compared["effects"] += 1
        return len(candidates) if len(found) == len(asked) else asked[len(found)]

    def _check_loss(self) -> None:
        """After catching up the loss is that of the same removals at once."""
        self._engine.catch_up()
        self._fresh.restore(self._removed())
        assert self._engine.present_loss == pytest.approx(self._fresh.present_loss, **self._tolerance)
        self.compared["losses"] += 1

    def _go_back(self) -> None:
        del self._decided[self._draw.randint(0, len(self._decided)) :]
        self._engine.restore(self._removed())
        self._fresh.restore(self._removed())
        assert self._engine.present_loss == pytest.approx(self._fresh.present_loss, **self._tolerance)


def _engine(
    architecture: Architecture, precision: PrecisionConfig | None, memory: int | None
) -> IncrementalEngine:
    """One on a model of its own, on all batches."""
    model, loader = build(architecture)
    prompts = collect_batches(model, loader, None)
    assert len(prompts) > 1
    metric = resolve_metric(architecture.metric, architecture.d_vocab)
    kind = ablation_type(architecture.ablation)
    return IncrementalEngine(Question(model, loader, prompts, kind, metric), precision, memory=memory)


def walked(architecture: Architecture, seed: int, waits: bool | None = None, **options: Any) -> None:
    """Walk until something was compared and, if it is to, something waited: random decisions may soon
    cut off all that matters."""
    for again in range(4):
        walk = Walk(architecture, seed + 1000 * again, **options)
        walk.run()
        assert walk.waited == 0 or waits is not False
        if walk.compared["effects"] and (walk.waited or not waits):
            return
    raise AssertionError(f"nothing compared or nothing waited: {architecture}")


FULL = pytest.mark.full
SEEDS = [*range(4), *(pytest.param(seed, marks=FULL) for seed in range(4, 80))]
FEWER = [*range(2), *(pytest.param(seed, marks=FULL) for seed in range(2, 30))]


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_of_whole_prompts(seed: int) -> None:
    walked(architecture_of(seed, positional_edges=False), seed, waits=True)


@pytest.mark.parametrize("seed", FEWER)
def test_edges_of_single_positions(seed: int) -> None:
    """They act at other positions one after the other, so that nothing may wait."""
    small = {"n_layers": 2, "n_heads": 2, "length": 4, "diverge": 2, "positional_edges": True}
    walked(architecture_of(100 + seed, **small), seed, waits=False)


@pytest.mark.parametrize("separate_qkv", [False, True])
@pytest.mark.parametrize("seed", FEWER)
def test_with_and_without_separate_inputs(seed: int, separate_qkv: bool) -> None:
    changes = {"n_layers": 2, "n_heads": 3, "separate_qkv": separate_qkv, "positional_edges": False}
    walked(architecture_of(200 + seed, **changes), seed, waits=True)


@pytest.mark.parametrize("memory", [1, 2**13])
@pytest.mark.parametrize("seed", FEWER)
def test_with_memory_for_few_rows(seed: int, memory: int) -> None:
    """At 1 byte a pass has a single candidate."""
    walked(architecture_of(300 + seed, positional_edges=False), seed, memory=memory)


@pytest.mark.parametrize(
    "precision",
    [
        PrecisionConfig(low="fp8_e5m2", mlp="fp8_e5m2"),
        PrecisionConfig(low="int8", mlp="int8", operands="values"),
        PrecisionConfig(low="int8", mlp="fp32", parts=("scores", "values", "unembed")),
    ],
    ids=["changes", "values", "parts"],
)
@pytest.mark.parametrize("seed", FEWER)
def test_other_precisions(seed: int, precision: PrecisionConfig) -> None:
    """Whatever is screened in, removals are exact."""
    architecture = architecture_of(400 + seed, positional_edges=False)
    walked(architecture, seed, waits=True, precision=precision)


@pytest.mark.parametrize("seed", FEWER)
def test_models_in_fp32(seed: int) -> None:
    architecture = architecture_of(500 + seed, normalization="LN", positional_edges=False)
    walked(replace(architecture, dtype=torch.float32), seed)


def test_what_waits_is_taken_out_before_the_next_stage() -> None:
    """The loss is unknown while edges wait, and known again when the next candidate's destination
    lies behind another stage."""
    architecture = architecture_of(0, n_layers=2, n_heads=2, attn_only=True, positional_edges=False)
    engine, order = _engine(architecture, INT8, None), canonical_edges(build(architecture)[0])
    first = [edge for edge in order if edge.dest == order[0].dest]
    behind = next(edge for edge in order if edge.dest.layer != order[0].dest.layer)
    kept = [True] * len(first)
    kept[2] = False
    engine.effects(first, kept, exact=False)
    engine.remove(first[2:3])
    assert engine.present_loss is None
    engine.effects(first[3:4], [False], exact=False)
    assert engine.present_loss is None
    engine.effects([behind], [False], exact=False)
    fresh = _engine(architecture, None, None)
    fresh.restore(first[2:3])
    assert engine.present_loss == pytest.approx(fresh.present_loss, rel=1e-8, abs=1e-11)
    assert engine.present_loss != engine.loss
