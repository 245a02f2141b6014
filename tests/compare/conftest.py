"""The small comparison of `swept`, run once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pahq_plugin.compare.run import Outcome
from tests.compare.swept import PLAN, run


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    outcome = run(PLAN, folder)
    assert outcome == Outcome()
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(done, tmp_path / "copied"))
