"""Find engines and commands of other packages by name, through entry points.

======================  ===========================================================================
group                   an entry point names
======================  ===========================================================================
``pahq.engines``        an `EngineFactory`; its name is a value of ``engine=``
``pahq.commands``       a function with a signature for typer; its name is the command's name
======================  ===========================================================================

Methods, metrics, number formats and engines can also be named as ``"module:attribute"``.

Such a package is imported only when its name is requested. Commands are the exception: the command
line has to list them, so their modules should import little.
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
    """Return whether a name has the form ``"module:attribute"``."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def referred(name: str, kind: type[Value]) -> Value:
    """Import the attribute that ``"module:attribute"`` names, an instance of ``kind``.

    Raises:
        ConfigError: the module or attribute does not exist, or is not of that class.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a foreign module may raise anything on import
        raise ConfigError(f"{name!r} cannot be imported: {one_line(error)}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{name!r} is a {type(found).__name__}; expected a {kind.__name__}")
    return found


def load(entry: EntryPoint) -> Any:
    """Import the callable that an entry point names.

    Raises:
        ConfigError: importing it failed, or it is not callable.
    """
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # a foreign module may raise anything on import
        raise ConfigError(
            f"{entry.group} {entry.name!r} ({entry.value}) cannot be loaded: {one_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{entry.group} {entry.name!r} ({entry.value}) is a {type(found).__name__}, not a function"
        )
    return found
