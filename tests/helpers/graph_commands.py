"""The commands ``export`` and ``run`` in this process, without ``pahq`` around them."""

from __future__ import annotations

import typer
from typer.testing import CliRunner, Result

from pahq_exporters import commands


def command(*arguments: object) -> Result:
    """Run one of the two commands."""
    app = typer.Typer()
    app.command("export")(commands.export)
    app.command("run")(commands.run)
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


def fails(word: str, *arguments: object) -> None:
    """Run one that ends with one line on standard error that holds ``word``."""
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and word in line and not result.stdout, line
