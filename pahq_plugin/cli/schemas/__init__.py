"""JSON Schemas of the output of commands with ``--json``.

Schemas of this package's commands are beside this file. A package that adds a command through the entry
point group ``pahq.commands`` keeps its schema as ``schemas/COMMAND.json`` in its own folder.
"""

from __future__ import annotations

from importlib import resources
from importlib.metadata import entry_points

from pahq_plugin.errors import ConfigError
from pahq_plugin.system.plugins import COMMANDS

SAME = {"show": "discover", "import": "discover"}
"""Commands whose output has the schema of another command."""

OWN = ("discover", "show", "compare", "store", "doctor")


def schema_text(command: str) -> str:
    """Return the schema of a command's JSON output.

    Raises:
        ConfigError: no such command, or one without a schema; the message lists the known ones.
    """
    text = _text(command)
    if text is None:
        names = [*OWN, *(name for name in sorted(_others()) if _text(name) is not None)]
        raise ConfigError(f"no schema for {command!r}; known: {', '.join(names)}")
    return text


def _text(command: str) -> str | None:
    command = SAME.get(command, command)
    package = "pahq_plugin.cli" if command in OWN else _others().get(command)
    if package is None:
        return None
    file = resources.files(package) / "schemas" / f"{command}.json"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _others() -> dict[str, str]:
    """Return command -> package for the commands of other packages."""
    return {entry.name: entry.module.partition(".")[0] for entry in entry_points(group=COMMANDS)}
