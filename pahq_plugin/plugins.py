"""Engines and commands that other packages add, found by name through entry points.

======================  ===========================================================================
group                   an entry is
======================  ===========================================================================
``pahq.engines``        an `EngineFactory`; its name is what ``engine=`` takes
``pahq.commands``       a function whose signature typer reads; its name is the command's
======================  ===========================================================================

Nothing of such a package is loaded before its name is asked for, but commands, which the command line
has to know; these modules should import little.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol

from pahq_plugin.errors import ConfigError, one_line

if TYPE_CHECKING:  # the command line reads this module before anything heavy is imported
    import torch

    from pahq_plugin.config import PrecisionConfig
    from pahq_plugin.engine import Engine

ENGINES, COMMANDS = "pahq.engines", "pahq.commands"


class EngineFactory(Protocol):
    """Makes engines of one kind."""

    def default_precision(self, device: torch.device) -> PrecisionConfig:
        """What the engine screens with where nothing was asked for."""
        ...

    def __call__(self, task: Any, precision: PrecisionConfig, exact: Callable[[], Engine]) -> Engine:
        """An engine.

        Args:
            task: what to measure, a `pahq_plugin.searching.SearchTask`; its model is borrowed.
            precision: to screen in; an exact one (``precision.is_exact``) means FP32 effects.
            exact: makes an engine that decides in FP32, for what is screened in few bits.

        Raises:
            PahqError: the engine cannot do that task.
        """
        ...


def engine_names() -> list[str]:
    """Engines that other packages add."""
    return sorted(entry_points(group=ENGINES).names)


def engine_factory(name: str) -> EngineFactory:
    """The factory of that name.

    Raises:
        ConfigError: it cannot be loaded; says which package it comes from.
    """
    (entry, *_) = entry_points(group=ENGINES, name=name)
    return load(entry)


def load(entry: EntryPoint) -> Any:
    """What an entry names.

    Raises:
        ConfigError: importing it failed, or it is nothing that can be called.
    """
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # whatever a foreign module does while it is imported
        raise ConfigError(
            f"{entry.group} {entry.name!r} ({entry.value}) cannot be loaded: {one_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{entry.group} {entry.name!r} ({entry.value}) is a {type(found).__name__}, not a function"
        )
    return found
