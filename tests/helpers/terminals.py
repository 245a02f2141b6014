"""Python in a terminal of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def in_a_terminal(
    *arguments: str, only_errors: bool = False, code: int | None = None, **environment: str
) -> str:
    """What a Python process writes to a terminal of 100 columns.

    Args:
        arguments: of Python.
        only_errors: whether the terminal gets standard error alone.
        code: the exit code that is expected; ``None`` for any.
        environment: variables beside those of this process.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
        stdout=subprocess.DEVNULL if only_errors else theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = _read_all(ours)
    os.close(ours)
    assert code in (None, process.returncode), seen
    return seen


def _read_all(terminal: int) -> str:
    seen = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        seen += part
    return seen.decode()
