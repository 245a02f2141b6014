"""Searches and tests leave random generators and the tables of the host as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT, PRUNE_ALGOS


@pytest.fixture(autouse=True)
def _generators_as_before() -> Iterator[None]:
    python, pytorch = random.getstate(), torch.get_rng_state()
    yield
    random.setstate(python)
    torch.set_rng_state(pytorch)


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    """What a test registers is gone after it."""
    listed, entered = list(PRUNE_ALGOS), dict(PRUNE_ALGO_DICT)
    yield
    PRUNE_ALGOS[:] = listed
    PRUNE_ALGO_DICT.clear()
    PRUNE_ALGO_DICT.update(entered)
