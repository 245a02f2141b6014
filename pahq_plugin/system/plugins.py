"""Engines and commands that other packages add, found by name through entry points.

======================  ===========================================================================
group                   an entry is
======================  ===========================================================================
``pahq.engines``        an `EngineFactory`; its name is what ``engine=`` takes
``pahq.commands``       a function whose signature typer reads; its name is the command's
======================  ===========================================================================

Methods, metrics, number formats and engines can also be named as ``"module:attribute"``.

Nothing of such a package is loaded before its name is asked for, but commands, which the command line
has to know; these modules should import little.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from pahq_plugin.errors import ConfigError, one_line

Value = TypeVar("Value")

ENGINES, COMMANDS = "pahq.engines", "pahq.commands"


def is_reference(name: object) -> bool:
    """Whether a name is of the form ``"module:attribute"``."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def referred(name: str, kind: type[Value]) -> Value:
    """Import what a name of the form ``"module:attribute"`` stands for.

    Args:
        name: the module has to be found on Python's path.
        kind: what the attribute has to be.

    Raises:
        ConfigError: no such module or attribute, or something else.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a foreign module does while it is imported
        raise ConfigError(f"{name!r} cannot be imported: {one_line(error)}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{name!r} is a {type(found).__name__}; expected a {kind.__name__}")
    return found


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
