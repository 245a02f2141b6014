"""Output of commands: one-line errors and warnings, results as tables or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pahq_plugin.errors import PahqError, PahqWarning, one_line
from pahq_plugin.results.terminal import print_view, record_view, titled
from pahq_plugin.system.warn import OWN


@contextmanager
def one_line_errors(debug: bool, how_to_go_on: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors inside the ``with`` block into one line and an exit code: 1 if raised on purpose.

    Warnings and log records of this package become one line each on standard error; those of other
    libraries are not printed.

    Args:
        debug: let errors through, with their traceback.
        how_to_go_on: returns the end of the line printed after an interrupt.
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
    """Print what was wrong in one line and return the exit code."""
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
    """Print warnings and log records as `one_line_errors` describes; restore the settings afterwards."""
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
    """Print this package's warnings as one line, and others as before."""
    if issubclass(category, PahqWarning):
        complain(f"warning: {message}", style="yellow")
    else:
        otherwise(message, category, *where, **others)


class _OneLine(logging.Handler):
    """Prints log records as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")


def complain(line: str, style: str = "red") -> None:
    """Print one line on standard error, coloured on a terminal without ``NO_COLOR`` or with
    ``FORCE_COLOR``."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(line, style=style, soft_wrap=True)


def print_json(record: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


def print_result(
    record: dict[str, Any], stats: dict[str, Any], top: int, as_json: bool, saved: Path | None = None
) -> None:
    """Print a result and its cost: as one JSON document, or its ``top`` edges and where it is saved."""
    if as_json:
        print_json(record | {"stats": stats})
        return
    print_view(record_view(record, stats, top))
    if saved is not None:
        typer.echo(f"saved in {saved}; show it again with: pahq show {saved}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text; the first column names the row.

    If the terminal is too narrow for whole words, the last columns are only named below the table.
    """
    console = Console(highlight=False, markup=False)
    if console.options.ascii_only:
        rows = [[cell.replace("–", "-") for cell in row] for row in rows]
    cells = [[name, *(row[place] for row in rows)] for place, name in enumerate(columns)]
    widths = [max(map(cell_len, column)) for column in cells]
    if _width(widths) > console.width:
        words = [[word for text in column for word in text.split()] for column in cells[1:]]
        widths[1:] = [max(map(cell_len, some), default=0) for some in words]
    count = len(columns)
    while count > 2 and _width(widths[:count]) > console.width:
        count -= 1
    table = titled(title)
    for name, width in zip(columns[:count], widths, strict=False):
        justify: Any = "right" if table.columns else "left"
        table.add_column(name, justify=justify, no_wrap=not table.columns, width=width)
    for row in rows:
        table.add_row(*row[:count])
    console.print(table)
    if count < len(columns):
        console.print(f"A wider terminal shows: {'; '.join(columns[count:])}")


def _width(columns: Sequence[int]) -> int:
    """Return a table's width: each column has a space on both sides and a rule after it."""
    return sum(columns) + 3 * len(columns) + 1


def print_examination(found: dict[str, Any]) -> None:
    """Print what ``pahq doctor`` found."""
    console = Console(highlight=False)
    versions = titled("Installed", "package", "version")
    for name, version in found["versions"].items():
        versions.add_row(name, Text(version or "not installed", style="" if version else "dim"))
    console.print(versions)
    columns = ("format", "multiplied in hardware", "kernel used")
    formats = titled(f"Number formats on {found['device']}", *columns)
    for name, fast in found["formats"].items():
        formats.add_row(name, "yes" if fast else "no", found["kernels"].get(name, ""))
    console.print(formats)
    console.print("A format without a kernel is emulated in FP32: the same numerics, but no faster.")
    console.print(
        "pahq searches with estimates in FP32. It screens in few bits on request (--low, --mlp, ...) "
        f"and on other engines, here by default: {found['default_precision']}"
    )
    uses = titled("Uses, and what they require", "use", "ready", "requires")
    for entry in found["uses"]:
        ready = {True: "yes", False: "no", None: "not tried"}[entry["ready"]]
        uses.add_row(entry["use"], ready, Text("" if entry["ready"] else entry["takes"]))
    console.print(uses)
    for advice in found["advice"]:
        console.print(f"- {advice}", markup=False)
