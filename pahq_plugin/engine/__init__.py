"""Engines: how the effect of removing an edge is measured.

An engine holds the *state* of a sweep, the set of edges removed so far. It is asked for the effects
of the next candidates, each *as if those before had gone the way that is predicted*, and answers as
many of them as it likes (at least one): measuring ahead is how an engine can work on a whole batch of
candidates. An answer is used only if all predictions before it came true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pahq_plugin.config import PrecisionConfig
from pahq_plugin.host import Edge


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
