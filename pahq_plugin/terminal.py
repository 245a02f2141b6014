"""What commands share: options that several have, errors of one line, results in a table or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pahq_plugin import completion as known
from pahq_plugin.errors import PahqError, PahqWarning, one_line
from pahq_plugin.notices import OWN

Model = Annotated[
    str | None,
    typer.Option(help="A TransformerLens name, or a folder (Hugging Face's, or of pahq store)."),
]
Prompts = Annotated[Path | None, typer.Option(help="Your prompts, a host JSON file.")]
BatchSize = Annotated[int | None, typer.Option(help="Prompts per batch.")]
Positional = Annotated[bool, typer.Option(help="Edges at each token position.")]
Ablation = Annotated[str, known.option(known.ABLATIONS, "What a patched edge carries.")]
Out = Annotated[Path | None, typer.Option(help="Folder to save the result in.")]
Force = Annotated[bool, typer.Option(help="Replace what is there already.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Top = Annotated[int, typer.Option(help="How many of the strongest edges to list.", min=0)]


class one_line_errors:
    """A context that turns an error raised on purpose into one line and exit code 1.

    Inside it, warnings and log lines of this package are one line each on standard error, and those
    of other libraries are not printed.

    Args:
        debug: let errors through, with their traceback.
        how_to_go_on: asked for the end of the line about an interrupt.
    """

    def __init__(self, debug: bool, how_to_go_on: Callable[[], str] = str) -> None:
        self._debug = debug
        self._how_to_go_on = how_to_go_on
        self._handler = _OneLine(logging.WARNING)

    def __enter__(self) -> None:
        logging.getLogger().setLevel(logging.ERROR)
        for name in OWN:
            logging.getLogger(name).setLevel(logging.WARNING)
            logging.getLogger(name).addHandler(self._handler)
        warnings.filterwarnings("ignore", module=r"(?!pahq_plugin)")
        warnings.filterwarnings("always", category=PahqWarning)
        self._showwarning = warnings.showwarning
        warnings.showwarning = self._warning

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        warnings.showwarning = self._showwarning
        for name in OWN:
            logging.getLogger(name).removeHandler(self._handler)
        if error is None or self._debug or isinstance(error, (typer.Exit, SystemExit)):
            return
        if isinstance(error, KeyboardInterrupt):
            complain(f"interrupted{self._how_to_go_on()}", style="")
            raise typer.Exit(130) from None
        if isinstance(error, (PahqError, OSError, MemoryError)):
            message = str(error) if isinstance(error, PahqError) else one_line(error)
            complain(f"error: {message or type(error).__name__}")
            raise typer.Exit(1) from None
        complain(f"error: unexpected {type(error).__name__}: {one_line(error)}; --debug shows where")
        raise typer.Exit(2) from None

    def _warning(self, message: Any, category: type[Warning], *where: Any, **others: Any) -> None:
        if issubclass(category, PahqWarning):
            complain(f"warning: {message}", style="yellow")
        else:
            self._showwarning(message, category, *where, **others)


class _OneLine(logging.Handler):
    """Log records as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")


def complain(line: str, style: str = "red") -> None:
    """One line on standard error, coloured as rich colours: on a terminal, ``NO_COLOR`` unset, or where
    ``FORCE_COLOR`` asks for it."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(line, style=style, soft_wrap=True)


def print_json(record: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


def print_result(
    record: dict[str, Any], stats: dict[str, Any], top: int, as_json: bool, saved: Path | None = None
) -> None:
    """Print a result and what it cost: one JSON document, or its ``top`` edges and where it is saved."""
    if as_json:
        print_json(record | {"stats": stats})
        return
    from pahq_plugin.tables import print_record

    print_record(record, stats, top)
    if saved is not None:
        typer.echo(f"saved in {saved}; look at it again with: pahq show {saved}")
