"""Settings of every test."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from pahq_plugin.engines.incremental import estimating

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network; without it, each try waits
torch.set_num_threads(1)  # the tests run side by side, and their models are tiny


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line lowers the root logger; a process of its own would end with it."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(autouse=True)
def _estimates_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pahq`` estimates here also on models that are too small for it to pay."""
    monkeypatch.setattr(estimating, "FEWEST", 1)
    monkeypatch.setattr(estimating, "LEAST_PRODUCTS", 0)
