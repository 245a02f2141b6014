"""JSON Schemas of what commands print with ``--json``.

Those of this package's commands lie beside this file. A package that adds a command through the entry
points ``pahq.commands`` keeps its schema in its own folder ``schemas``, under the command's name.
"""

from __future__ import annotations

from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable

from pahq_plugin.errors import ConfigError

SAME = {"show": "discover", "import": "discover"}
"""Commands that print what another one prints."""

OWN = ("discover", "show", "compare", "store", "doctor")


def schema_text(command: str) -> str:
    """The schema of a command's JSON.

    Raises:
        ConfigError: no such command, or one without a schema; lists those there are.
    """
    found = _file(command)
    if found is None or not found.is_file():
        names = [*OWN, *(name for name in sorted(_others()) if _has_one(name))]
        raise ConfigError(f"no schema of {command!r}; there are those of {', '.join(names)}")
    return found.read_text(encoding="utf-8")


def _file(command: str) -> Traversable | None:
    command = SAME.get(command, command)
    if command in OWN:
        return resources.files(__name__) / f"{command}.json"
    package = _others().get(command)
    return None if package is None else resources.files(package) / "schemas" / f"{command}.json"


def _has_one(command: str) -> bool:
    found = _file(command)
    return found is not None and found.is_file()


def _others() -> dict[str, str]:
    """Commands of other packages, with the package."""
    entries = entry_points(group="pahq.commands")
    return {entry.name: entry.module.partition(".")[0] for entry in entries}
