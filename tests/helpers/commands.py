"""The command ``pahq`` in this process and in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from typer.testing import CliRunner, Result

from pahq_plugin.cli.app import app
from tests.helpers.terminals import REPOSITORY


def command(*arguments: str | Path, width: int = 120) -> Result:
    """Run ``pahq`` in this process."""
    runner = CliRunner(env={"COLUMNS": str(width), "TERM": "dumb"})
    return runner.invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: str | Path) -> str:
    """Run ``pahq`` in this process and return what it printed."""
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def strict_json(text: str) -> Any:
    """JSON by its standard, in which NaN and infinity do not exist."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


HEAVY = ("torch", "numpy", "pandas", "transformers", "transformer_lens", "auto_circuit", "matplotlib")
MAIN = "import sys; from pahq_plugin.cli.app import main; sys.argv[0] = 'pahq'; main()"


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``pahq`` in a process of its own, without a terminal."""
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=REPOSITORY,
        env=clean | {"TERM": "xterm"} | environment,
        capture_output=True,
        text=True,
    )


def assert_light(code: str, *arguments: str, code_of_exit: int = 0, **environment: str) -> str:
    """Run ``code`` in a process of its own, find nothing heavy imported, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code_of_exit, done.stderr[-500:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pahq_plugin.cli.app" in imported and not imported & set(HEAVY)
    return done.stdout
