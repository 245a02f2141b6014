"""Exports that several tests of patched runs share."""

from __future__ import annotations

import pytest

from tests.helpers.patchers import Graphs, exported


@pytest.fixture(scope="package")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return exported(tmp_path_factory.mktemp("graphs"))
