"""JSON Schemas of the output of commands with ``--json``.

Schemas of this package's commands are beside this file. A package that adds a command through the entry
point group ``pahq.commands`` keeps its schema as ``schemas/COMMAND.json`` in its own folder.
"""

from __future__ import annotations

from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable

from pahq_plugin.errors import ConfigError

SAME = {"show": "discover", "import": "discover"}
"""Commands whose output has the schema of another command."""

OWN = ("discover", "show", "compare", "store", "doctor")


def schema_text(command: str) -> str:
    """Return the schema of a command's JSON output.

    Raises:
        ConfigError: no such command, or one without a schema; the message lists the known ones.
    """
    found = _file(command)
    if found is None or not found.is_file():
        names = [*OWN, *(name for name in sorted(_others()) if _has_one(name))]
        raise ConfigError(f"no schema for {command!r}; known: {', '.join(names)}")
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
    """Return command -> package for the commands of other packages."""
    entries = entry_points(group="pahq.commands")
    return {entry.name: entry.module.partition(".")[0] for entry in entries}
