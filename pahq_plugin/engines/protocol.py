"""The protocol of engines, which measure the effect of removing an edge.

An engine holds the *state* of a sweep: the set of edges removed so far. It is asked for the effects of
the next candidates, each *as if the decisions before it had been as predicted*, and answers as many as
it likes (at least one). Measuring ahead lets an engine work on a whole batch of candidates. An answer is
used only if all predictions before it came true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pahq_plugin.engines.question import Question
from pahq_plugin.host import Edge
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.plugins import ENGINES, is_reference, load, referred


class Engine(Protocol):
    """What the search needs of an engine.

    Attributes:
        name: its name as in ``engine=``.
        lookahead: the largest number of candidates it can use at once.
        evaluations: rows run so far; whether those of the clean model count is up to the engine.
        loss: loss of the clean model, in the model's own precision.

    Two members are optional: ``snapshot_every``, the number of rows between two fresh starts where these
    are costly, and ``close()``, called when the search ends.
    """

    name: str
    lookahead: int
    evaluations: int
    loss: float

    @property
    def present_loss(self) -> float | None:
        """Loss of the present state in the model's own precision; ``None`` if it is not known, either
        never or not before `catch_up`."""
        ...

    @property
    def screens(self) -> bool:
        """Whether effects may be measured in low precision unless ``exact`` is asked for."""
        ...

    def screen_with(self, precision: PrecisionConfig) -> None:
        """Screen in this mixed precision from now on."""
        ...

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """Measure the effects of the first one or more candidates, in order.

        Args:
            candidates: edges not yet removed, at least one.
            predicted_kept: for each candidate whether it is expected to be kept.
            exact: measure in the model's own precision, whatever the engine screens in.

        Returns:
            For each answered candidate the loss with it removed minus the loss before, where the
            candidates ahead of it count as removed unless they are predicted to be kept.

        Raises:
            MetricError: a loss is not finite.
        """
        ...

    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """Measure in FP32 the effects of candidates that have just been screened together.

        Args:
            candidates: the first of the candidates that the last call of `effects` answered.
            predicted_kept: as given there.
            wanted: for each candidate whether its effect is wanted; at least one is.

        Returns:
            Effects of the first one or more of the wanted candidates, in order, where the candidates
            ahead of each count as predicted.

        Raises:
            MetricError: a loss is not finite.
        """
        ...

    def remove(self, edges: Sequence[Edge]) -> None:
        """Remove ``edges`` from the state."""
        ...

    def catch_up(self) -> None:
        """Do the work that removals have deferred."""
        ...

    def restore(self, removed: Sequence[Edge]) -> None:
        """Set the state to the one in which exactly ``removed`` are removed; what is measured from then
        on depends on nothing else, bit for bit."""
        ...


@dataclass(frozen=True)
class Slopes:
    """Derivatives of the loss along edges, FP64.

    Attributes:
        first: the first-order change of the loss when a candidate is removed, ``[candidate]``.
        probes: removing two candidates changes the loss by about the inner product of their probes more
            than both alone, ``[candidate, probe]``.
    """

    first: NDArray[np.float64]
    probes: NDArray[np.float64]

    @property
    def finite(self) -> bool:
        """Whether no derivative is NaN or infinite."""
        return bool(np.isfinite(self.first).all() and np.isfinite(self.probes).all())


class Estimator(Engine, Protocol):
    """An engine that can also differentiate the loss, and remove any sets of candidates on its rows.

    All candidates of a call are edges into destinations of one stage, as `of_one_stage` returns them.

    Attributes:
        gradients: gradients and probes taken back through the model so far.
    """

    gradients: int

    def objection_to_slopes(self) -> str | None:
        """Return why the loss cannot be differentiated; ``None`` if it can."""
        ...

    def of_one_stage(self, candidates: Sequence[Edge]) -> list[Edge]:
        """Return the first candidates, those whose destinations cannot influence each other."""
        ...

    def changing(self, candidates: Sequence[Edge]) -> list[bool]:
        """Return for each candidate whether its removal can change anything."""
        ...

    def pays(self, candidates: Sequence[Edge]) -> bool:
        """Return whether estimating all candidates of a stage is expected to cost less than measuring
        each of them. The answer depends on sizes only, never on time."""
        ...

    def fitting_rows(self, candidates: Sequence[Edge]) -> int:
        """Return how many rows fit in one pass of `losses`."""
        ...

    def losses(
        self, candidates: Sequence[Edge], changing: Sequence[bool], gone: NDArray[np.bool_]
    ) -> list[float] | None:
        """Measure the loss in FP32 with sets of candidates removed.

        Args:
            candidates: edges not yet removed.
            changing: as `changing` returns it.
            gone: which of the candidates are removed on each row, ``[row, candidate]``.

        Returns:
            The loss of each row, or ``None`` if memory ran out: `fitting_rows` returns less then.

        Raises:
            MetricError: a loss is not finite.
        """
        ...

    def slopes(self, candidates: Sequence[Edge], row: int | None = None) -> Slopes:
        """Differentiate the loss along edges, at the present state, or without probes at a row of the
        last call of `losses`."""
        ...


class EngineFactory(Protocol):
    """Creates engines of one kind."""

    def default_precision(self, device: torch.device) -> PrecisionConfig:
        """Return the precision that the engine screens in by default."""
        ...

    def __call__(
        self, question: Question, precision: PrecisionConfig, exact: Callable[[], Engine]
    ) -> Engine:
        """Create an engine.

        Args:
            question: what is measured; its model is borrowed.
            precision: the precision to screen in; if it is exact (``precision.is_exact``), effects are
                those of FP32.
            exact: creates an engine that decides in FP32 what was screened in low precision.

        Raises:
            PahqError: the engine cannot answer that question.
        """
        ...


def engine_names() -> list[str]:
    """List the engines that other packages add."""
    return sorted(entry_points(group=ENGINES).names)


def engine_factory(name: str) -> EngineFactory:
    """Return the engine factory of that name.

    Args:
        name: the name of an entry point, or ``"module:attribute"``.

    Raises:
        ConfigError: it cannot be loaded; the message says which package it comes from.
    """
    if is_reference(name):
        return referred(name, object)  # type: ignore[return-value]
    (entry, *_) = entry_points(group=ENGINES, name=name)
    return load(entry)
