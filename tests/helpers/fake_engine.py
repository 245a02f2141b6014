"""An engine whose effects are given by a function, and the plain sequential ACDC loop over it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from auto_circuit.types import DestNode, Edge, SrcNode

from pahq_plugin.discovery.acdc import Sweep
from pahq_plugin.discovery.guard import GuardBand
from pahq_plugin.discovery.screening import Screening
from pahq_plugin.engines.protocol import Slopes
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.results.decision import Decision

Loss = Callable[[frozenset[Edge]], float]
"""Loss of the model from which a set of edges is removed."""

Noise = Callable[[Edge, float], float]
"""What screening adds to the exact effect of an edge."""


def edges(count: int) -> list[Edge]:
    """Edges of one destination, in canonical order."""
    dest = DestNode("Resid End", "blocks.0.hook_resid_post", layer=2)
    sources = (SrcNode(f"A0.{i}", "blocks.0.attn.hook_result", 1, src_idx=i) for i in range(count))
    return [Edge(src, dest) for src in sources]


def random_loss(order: Sequence[Edge], seed: int, interaction: float = 0.5) -> Loss:
    """Effects near 1 that depend on what has gone before.

    Every number is a multiple of 2^-10, so that sums are exact and differences do not depend on
    the order of summation.
    """
    draw = random.Random(seed)
    index = {edge: i for i, edge in enumerate(order)}
    single = [draw.randrange(-512, 2560) / 1024 for _ in order]
    size = int(1024 * interaction)
    pairs = {
        (i, j): draw.randrange(-size, size + 1) / 1024
        for i in range(len(order))
        for j in range(i)
        if draw.random() < 0.4
    }

    def loss(removed: frozenset[Edge]) -> float:
        gone = sorted(index[edge] for edge in removed)
        total = sum(single[i] for i in gone)
        return total + sum(pairs.get((i, j), 0.0) for i in gone for j in gone if j < i)

    return loss


def additive_loss(effects: dict[Edge, float]) -> Loss:
    """Every edge has its own effect, whatever else is gone."""
    return lambda removed: sum(effects[edge] for edge in removed)


def swept(
    engine: Any,
    order: Sequence[Edge],
    threshold: float,
    guard: GuardBand | None = None,
    seed: int = 0,
    **options: Any,
) -> Sweep:
    """A sweep of an engine, with screening where the engine screens."""
    screening = Screening(engine, order, threshold, guard, seed=seed) if engine.screens else None
    return Sweep(engine, order, threshold, screening, **options)


def sequential(order: Sequence[Edge], loss: Loss, threshold: float) -> list[tuple[Edge, bool]]:
    """ACDC as published: each edge and whether it is kept."""
    removed: frozenset[Edge] = frozenset()
    decisions = []
    for edge in order:
        kept = loss(removed | {edge}) - loss(removed) >= threshold
        removed = removed if kept else removed | {edge}
        decisions.append((edge, kept))
    return decisions


def outcome(decisions: Sequence[Decision]) -> list[tuple[Edge, bool]]:
    """Each edge and whether it is kept."""
    return [(decision.edge, decision.kept) for decision in decisions]


def some(seed: int) -> Callable[[int], int]:
    """Answers any number of the candidates that are offered."""
    draw = random.Random(seed)
    return lambda offered: draw.randint(1, offered)


class FakeEngine:
    """Answers as many candidates as ``answers`` says, at most ``lookahead``.

    Attributes:
        removed: the state of the sweep.
        restored: the states it was set back to.
        asked_exactly: edges whose exact effect was asked for.
    """

    loss = 1.0

    def __init__(
        self,
        function: Loss,
        *,
        lookahead: int = 1,
        answers: Callable[[int], int] | None = None,
        noise: Noise | None = None,
        knows_loss: bool = False,
    ) -> None:
        self.lookahead, self.evaluations = lookahead, 0
        self.removed: frozenset[Edge] = frozenset()
        self.restored: list[set[Edge]] = []
        self.asked_exactly: list[Edge] = []
        self._function, self._noise = function, noise
        self._knows_loss = knows_loss
        self._answers = answers or (lambda offered: offered)

    @property
    def present_loss(self) -> float | None:
        """Exact loss of the state, where it is known."""
        return self._function(self.removed) if self._knows_loss else None

    @property
    def screens(self) -> bool:
        """Whether effects may be noisy."""
        return self._noise is not None

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """As `pahq_plugin.engines.protocol.Engine.effects` says; checks what it is asked."""
        assert len(candidates) == len(predicted_kept) >= 1
        assert len(candidates) <= self.lookahead or exact
        assert len(set(candidates)) == len(candidates)
        assert not self.removed & set(candidates)
        count = min(len(candidates), self._answers(len(candidates)))
        state, effects = self.removed, []
        for edge, kept in list(zip(candidates, predicted_kept, strict=True))[:count]:
            effect = self._function(state | {edge}) - self._function(state)
            effects.append(effect if exact or self._noise is None else self._noise(edge, effect))
            state = state if kept else state | {edge}
        self.evaluations += count
        self.asked_exactly += list(candidates[:count]) if exact else []
        return effects

    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """As `pahq_plugin.engines.protocol.Engine.settle` says."""
        assert len(candidates) == len(predicted_kept) == len(wanted) and any(wanted)
        state, effects = self.removed, []
        count = max(1, self._answers(sum(wanted)))
        for edge, kept, asked in zip(candidates, predicted_kept, wanted, strict=True):
            if asked and len(effects) < count:
                effects.append(self._function(state | {edge}) - self._function(state))
                self.asked_exactly.append(edge)
            state = state if kept else state | {edge}
        self.evaluations += len(effects)
        return effects

    def remove(self, gone: Sequence[Edge]) -> None:
        """Take edges out, each once."""
        assert not self.removed & set(gone)
        self.removed |= set(gone)

    def screen_with(self, precision: PrecisionConfig) -> None:
        """Its noise stays."""

    def catch_up(self) -> None:
        """Nothing is put off."""

    def restore(self, removed: Sequence[Edge]) -> None:
        """Go back to a state."""
        self.removed = frozenset(removed)
        self.restored.append(set(removed))


class FakeEstimator(FakeEngine):
    """Also differentiates: the slope of an edge is its effect on the present state, as ``slope`` changes
    it, and there is no curvature.

    Attributes:
        passes: the numbers of rows of the calls of `losses`.
        failures: what the next calls of `losses` raise or return instead of losses.
    """

    gradients = 0

    def __init__(self, function: Loss, *, slope: Noise | None = None, **options: Any) -> None:
        super().__init__(function, knows_loss=True, **options)
        self._slope = slope or (lambda _, effect: effect)
        self._gone: list[frozenset[Edge]] = []
        self.passes: list[int] = []
        self.failures: list[Exception | None] = []

    def objection_to_slopes(self) -> str | None:
        """There is none."""

    def of_one_stage(self, candidates: Sequence[Edge]) -> list[Edge]:
        """All edges of the first one's layer."""
        layer = candidates[0].dest.layer
        return [edge for edge in candidates if edge.dest.layer == layer]

    def changing(self, candidates: Sequence[Edge]) -> list[bool]:
        """All of them."""
        return [True] * len(candidates)

    def pays(self, candidates: Sequence[Edge]) -> bool:
        """Always."""
        return True

    def fitting_rows(self, candidates: Sequence[Edge]) -> int:
        """As many as it looks ahead."""
        return self.lookahead

    def losses(
        self, candidates: Sequence[Edge], changing: Sequence[bool], gone: Any
    ) -> list[float] | None:
        """As `pahq_plugin.engines.protocol.Estimator.losses` says."""
        assert not self.removed & set(candidates)
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure
            return None
        self._gone = [
            self.removed | {edge for edge, out in zip(candidates, row, strict=True) if out}
            for row in gone
        ]
        self.passes.append(len(gone))
        self.evaluations += len(gone)
        return [self._function(state) for state in self._gone]

    def slopes(self, candidates: Sequence[Edge], row: int | None = None) -> Slopes:
        """As `pahq_plugin.engines.protocol.Estimator.slopes` says."""
        state = self.removed if row is None else self._gone[row]
        effects = []
        for edge in candidates:
            effect = self._function(state | {edge}) - self._function(state - {edge})
            effects.append(self._slope(edge, effect))
        self.gradients += 1
        return Slopes(np.array(effects), np.zeros((len(candidates), 1)))


def relative_noise(seed: int, size: float) -> Noise:
    """Off by up to ``size`` times the effect, the same whenever it is asked for."""

    def noisy(edge: Any, effect: float) -> float:
        return effect * (1 + size * random.Random(f"{seed} {edge.name}").uniform(-1, 1))

    return noisy
