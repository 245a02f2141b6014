"""Numbers of a question: those out of range are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pahq_plugin.engines.question import check_numbers
from pahq_plugin.errors import ConfigError
from tests.helpers.refused import refused


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": -0.01},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": "0.01"},
        {"threshold": True},
        {"batches": -1},
        {"batches": 1.5},
        {"batches": True},
        {"seed": 0.5},
        {"seed": None},
        {"steps": 0},
        {"steps": 1.5},
    ],
)
def test_wrong_search_settings_are_refused(change: dict[str, Any]) -> None:
    (name, value) = next(iter(change.items()))
    with refused(ConfigError, f"{name}={value!r}"):
        check_numbers(**{"threshold": 0.01, "batches": 1, "seed": 0} | change)


def test_search_settings_that_are_allowed() -> None:
    check_numbers(threshold=1e-9, batches=None, seed=7)
    check_numbers(threshold=3, batches=2, seed=2**63 - 1)
