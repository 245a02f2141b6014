"""Warnings that point at the user's own line of code.

Everything else goes through ``logging``, to loggers below ``pahq_plugin``, which print nothing unless an
application configures them.
"""

from __future__ import annotations

import io
import sys
import warnings

from pahq_plugin.errors import PahqWarning, printable

OWN = frozenset({"pahq_plugin", "pahq_exporters"})


def warn(message: str) -> None:
    """Issue a `PahqWarning` at the line that called into this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _package(frame.f_globals) in OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), PahqWarning, stacklevel=level)


def never_fail_printing() -> None:
    """Print a question mark for characters that the terminal's encoding lacks, rather than fail after
    the work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _package(module: dict[str, object]) -> str:
    return str(module.get("__name__", "")).partition(".")[0]
