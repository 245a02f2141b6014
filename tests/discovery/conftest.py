"""Searches leave the random generators of the process as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _generators_as_before() -> Iterator[None]:
    python, pytorch = random.getstate(), torch.get_rng_state()
    yield
    random.setstate(python)
    torch.set_rng_state(pytorch)
