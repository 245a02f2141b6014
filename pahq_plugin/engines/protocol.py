"""Engines: how the effect of removing an edge is measured.

An engine holds the *state* of a sweep, the set of edges removed so far. It is asked for the effects
of the next candidates, each *as if those before had gone the way that is predicted*, and answers as
many of them as it likes (at least one): measuring ahead is how an engine can work on a whole batch of
candidates. An answer is used only if all predictions before it came true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from pahq_plugin.engines.question import Question
from pahq_plugin.host import Edge
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.plugins import ENGINES, is_reference, load, referred

if TYPE_CHECKING:
    import torch

    from pahq_plugin.precision.config import PrecisionConfig


class Engine(Protocol):
    """What the search needs of an engine.

    Attributes:
        name: what ``engine=`` calls it.
        lookahead: how many candidates it can use at most.
        evaluations: rows run so far; whether those of the clean model count is the engine's own.
        loss: loss of the clean model, in the model's own precision.

    It may have two more: ``snapshot_every``, rows between two fresh starts where these are costly, and
    ``close()``, called when the search ends.
    """

    name: str
    lookahead: int
    evaluations: int
    loss: float

    @property
    def present_loss(self) -> float | None:
        """Loss of the present state in the model's own precision; ``None`` if that is not known, never
        or before `catch_up`."""
        ...

    @property
    def screens(self) -> bool:
        """Whether effects that are not asked for as exact may be low-precision ones."""
        ...

    def screen_with(self, precision: PrecisionConfig) -> None:
        """Screen in another mixed precision than until now."""
        ...

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """Effects of the first one or more candidates, in order.

        Args:
            candidates: edges not yet removed, at least one.
            predicted_kept: for each candidate whether it is expected to be kept.
            exact: in the model's own precision, whatever the engine screens with.

        Returns:
            For each answered candidate the loss with it removed minus the loss before, where the
            candidates ahead of it count as removed unless they are predicted to be kept.

        Raises:
            MetricError: a loss that is not finite.
        """
        ...

    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """FP32 effects of some candidates that have just been screened together.

        Args:
            candidates: the first ones of those that `effects` has answered last.
            predicted_kept: as it was given there.
            wanted: whose effects are asked for, at least one's.

        Returns:
            Effects of the first one or more of the wanted candidates, in order, those ahead of each
            counted as predicted.

        Raises:
            MetricError: a loss that is not finite.
        """
        ...

    def remove(self, edges: Sequence[Edge]) -> None:
        """Take ``edges`` out of the state."""
        ...

    def catch_up(self) -> None:
        """Do what has been put off at removals."""
        ...

    def restore(self, removed: Sequence[Edge]) -> None:
        """Make the state the one in which exactly ``removed`` are gone; what is measured from then on
        depends on nothing else, bit for bit."""
        ...


class EngineFactory(Protocol):
    """Makes engines of one kind."""

    def default_precision(self, device: torch.device) -> PrecisionConfig:
        """What the engine screens with where nothing was asked for."""
        ...

    def __call__(
        self, question: Question, precision: PrecisionConfig, exact: Callable[[], Engine]
    ) -> Engine:
        """An engine.

        Args:
            question: what is measured; its model is borrowed.
            precision: to screen in; an exact one (``precision.is_exact``) means FP32 effects.
            exact: makes an engine that decides in FP32, for what is screened in few bits.

        Raises:
            PahqError: the engine cannot answer that question.
        """
        ...


def engine_names() -> list[str]:
    """Engines that other packages add."""
    return sorted(entry_points(group=ENGINES).names)


def engine_factory(name: str) -> EngineFactory:
    """The factory of that name.

    Args:
        name: of an entry point, or ``"module:attribute"``.

    Raises:
        ConfigError: it cannot be loaded; says which package it comes from.
    """
    if is_reference(name):
        return referred(name, object)  # type: ignore[return-value]
    (entry, *_) = entry_points(group=ENGINES, name=name)
    return load(entry)
