"""Snapshots often; a checkpoint that a finished search left."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_plugin.discovery import acdc as search
from tests.checkpoint.runs import run


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of the small searches here, too."""
    monkeypatch.setattr(search, "SNAPSHOT_EVERY", 24)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    run(path)
    return path
