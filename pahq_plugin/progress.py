"""Progress bars with counts and time left, on standard error, only where someone can see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[_Bar]:
    """A bar over ``total`` steps; silent when not ``shown`` or where no terminal is attached."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        yield _Bar(bar, bar.add_task(label, total=total, note=""))


def say(line: str, shown: bool = True) -> None:
    """A line on standard error that belongs to the progress of a run."""
    if shown:
        Console(stderr=True, highlight=False, markup=False).print(line, soft_wrap=True)


class _Bar:
    """One line of progress."""

    def __init__(self, bar: Progress, task: int) -> None:
        self._bar, self._task = bar, task

    def __call__(self, done: int, note: str = "") -> None:
        """Show that ``done`` steps are finished."""
        self._bar.update(self._task, completed=done, note=note)  # type: ignore[arg-type]
