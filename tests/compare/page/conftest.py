"""The report of a small comparison, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_plugin.compare.page.page import Report
from tests.compare.page.small_comparison import compare


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="session")
def report(folder: Path) -> Report:
    return compare(folder)
