"""A result found once by ``pahq discover``, for several commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.commands import succeeds

XPROPORTION = ["discover", "tracr-xproportion", "--threshold", "0.01"]


@pytest.fixture(scope="session")
def xproportion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A saved result, and what was printed when it was found."""
    folder = tmp_path_factory.mktemp("results") / "deep" / "xproportion"
    return folder, succeeds(*XPROPORTION, "--out", folder)
