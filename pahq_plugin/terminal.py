"""What all commands share: their common options, errors of one line, JSON on standard output."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from pahq_plugin.errors import PahqError, one_line

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Top = Annotated[int, typer.Option(help="How many of the strongest edges to list.", min=0)]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


class one_line_errors:
    """A context that turns an error raised on purpose into one line and exit code 1."""

    def __init__(self, debug: bool) -> None:
        self._debug = debug

    def __enter__(self) -> None:
        _quieten()

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        if error is None or self._debug or isinstance(error, (typer.Exit, SystemExit)):
            return
        if isinstance(error, KeyboardInterrupt):
            typer.secho("interrupted", err=True)
            raise typer.Exit(130) from None
        if isinstance(error, (PahqError, OSError, MemoryError)):
            message = str(error) if isinstance(error, PahqError) else one_line(error)
            message = message or type(error).__name__
            typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None
        typer.secho(
            f"error: unexpected {type(error).__name__}: {one_line(error)}; --debug shows where",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(2) from None


def _quieten() -> None:
    """Keep the log lines of libraries out of the tables."""
    import logging
    import warnings

    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("pahq_plugin").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(?!pahq_plugin)")


def print_json(record: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
