"""Checks before anything heavy is imported, and how to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pahq_plugin.cli.app import app
from tests.helpers.commands import MAIN, assert_light


@pytest.mark.parametrize(
    "arguments",
    [
        ["discover", "ioii"],
        ["discover", "ioi", "--prompts", "none.json"],
        ["export", "ioii", "g.onnx"],
        ["export", "ioi", "g.txt"],
        ["import", "ioi", "none.json"],
        ["show", "none"],
    ],
)
def test_plain_mistakes_are_refused_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    assert_light(MAIN, *arguments, code_of_exit=1)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: Any) -> None:
    """Where there is a checkpoint; and such a folder is not taken for one without a result."""

    def stopped(*_: Any, **given: Any) -> None:
        if with_checkpoint:
            given["checkpoint"].parent.mkdir()
            given["checkpoint"].write_text("decisions")
        raise KeyboardInterrupt

    monkeypatch.setattr("pahq_plugin.discovery.discover.discover", stopped)
    out = tmp_path / "long"
    for with_checkpoint in (False, True):
        done = CliRunner().invoke(app, ["discover", "ioi", "--out", str(out)])
        assert done.exit_code == 130 and done.stderr.startswith("interrupted")
        file = out / "checkpoint.safetensors"
        assert (f"run the same command again to continue from {file}" in done.stderr) is with_checkpoint
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert shown.exit_code == 1 and "not finished" in shown.stderr
