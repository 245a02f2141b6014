"""What commands share: options that several have, errors of one line, results in a table or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
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
Bos = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Begin text prompts with BOS; default: as the model says."),
]
Positional = Annotated[bool, typer.Option(help="Edges at each token position.")]
Ablation = Annotated[str, known.option(known.ABLATIONS, "What a patched edge carries.")]
Out = Annotated[Path | None, typer.Option(help="Folder to save the result in.")]
Force = Annotated[bool, typer.Option(help="Replace what is there already.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Top = Annotated[int, typer.Option(help="How many of the strongest edges to list.", min=0)]


@contextmanager
def one_line_errors(debug: bool, how_to_go_on: Callable[[], str] = str) -> Iterator[None]:
    """Inside the ``with`` block, an error raised on purpose becomes one line and exit code 1.

    Warnings and log lines of this package are one line each on standard error, and those of other
    libraries are not printed.

    Args:
        debug: let errors through, with their traceback.
        how_to_go_on: asked for the end of the line about an interrupt.
    """
    with _one_line_notices():
        try:
            yield
        except (typer.Exit, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if debug:
                raise
            raise typer.Exit(_told(error, how_to_go_on)) from None


def _told(error: BaseException, how_to_go_on: Callable[[], str]) -> int:
    """Say in one line what was wrong; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        complain(f"interrupted{how_to_go_on()}", style="")
        return 130
    if isinstance(error, (PahqError, OSError, MemoryError)):
        message = str(error) if isinstance(error, PahqError) else one_line(error)
        complain(f"error: {message or type(error).__name__}")
        return 1
    complain(f"error: unexpected {type(error).__name__}: {one_line(error)}; --debug shows where")
    return 2


@contextmanager
def _one_line_notices() -> Iterator[None]:
    """Warnings and log records as `one_line_errors` says; afterwards as they were."""
    handler = _OneLine(logging.WARNING)
    loggers = {name: logging.getLogger(name) for name in ("", *OWN)}
    levels = {name: logger.level for name, logger in loggers.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(?!pahq_plugin)")
        warnings.filterwarnings("always", category=PahqWarning)
        warnings.showwarning = partial(_show, warnings.showwarning)
        try:
            for name, logger in loggers.items():
                logger.setLevel(logging.WARNING if name else logging.ERROR)
                if name:
                    logger.addHandler(handler)
            yield
        finally:
            for name, logger in loggers.items():
                logger.setLevel(levels[name])
                logger.removeHandler(handler)


def _show(
    otherwise: Callable[..., None],
    message: Any,
    category: type[Warning],
    *where: Any,
    **others: Any,
) -> None:
    """Our warnings as one line; others as before."""
    if issubclass(category, PahqWarning):
        complain(f"warning: {message}", style="yellow")
    else:
        otherwise(message, category, *where, **others)


def flags_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """The flags of those parameters that the command line sets."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]


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
