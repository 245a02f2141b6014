"""What several kinds of bad input start from."""

from __future__ import annotations

import pytest

import pahq_plugin as pahq
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


@pytest.fixture(scope="module")
def found() -> pahq.Discovery:
    result = discover(small_model(), loader(), method="acdc", metric="mse", threshold=0.01)
    assert 0 < len(result.circuit) < len(result.decisions)
    return result
