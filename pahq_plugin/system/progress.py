"""Progress bars with counts and time left, shown only in terminals and notebooks.

In a terminal they are drawn on standard error. In a notebook they are an HTML element that appears
after half a second and disappears when the work is done; no extra package is needed.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich import progress
from rich.console import Console

Bar = Callable[..., None]
"""``bar(done, note="")`` reports that ``done`` steps are finished."""

FIRST_SHOWN, BETWEEN = 0.5, 0.1
"""Seconds before a notebook's bar appears, and between updates."""


def progress_bar(label: str, total: int, shown: bool = True) -> AbstractContextManager[Bar]:
    """Return a bar over ``total`` steps; silent if not ``shown``, or outside a terminal or notebook."""
    if shown and in_notebook():
        return _notebook_bar(label, total)
    return _terminal_bar(label, total, shown)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _terminal_bar(label: str, total: int, shown: bool) -> Iterator[Bar]:
    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    # FORCE_COLOR makes rich treat a file as a terminal; a bar would fill a log with hundreds of lines.
    seen = shown and console.is_terminal and console.file.isatty()
    with progress.Progress(*columns, console=console, disable=not seen) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def say(line: str, shown: bool = True) -> None:
    """Print a progress line on standard error."""
    if shown:
        Console(stderr=True, highlight=False, markup=False).print(line, soft_wrap=True)


@contextmanager
def _notebook_bar(label: str, total: int) -> Iterator[Bar]:
    """Show a bar in a notebook; after an error it stays and shows how far the work got."""
    bar = _NotebookBar(label, total)
    yield bar
    bar.remove()


class _NotebookBar:
    """A bar in the output of a notebook cell."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._start = time.monotonic()
        self._next = self._start + FIRST_SHOWN
        self._handle: Any = None

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + BETWEEN
        seconds = now - self._start
        left = f", {seconds / done * (self._total - done):.0f} s left" if done else ""
        counts = f"{done:,}/{self._total:,} {note}".strip()
        self._show(f"{self._label} {counts} ({seconds:.0f} s{left})", done)

    def remove(self) -> None:
        """Clear the bar's output."""
        if self._handle is not None:
            self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _show(self, text: str, done: int) -> None:
        element = (
            f'<progress max="{self._total}" value="{done}" aria-label="{html.escape(self._label)}" '
            f'style="vertical-align: middle"></progress> {html.escape(text)}'
        )
        data = {"text/plain": text, "text/html": element}
        if self._handle is None:
            from IPython.display import display

            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
