"""The global random generators, which the host and TransformerLens draw from: kept, and seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave Python's and torch's generators as they were before the ``with`` block."""
    python = random.getstate()
    try:
        # torch would warn about several GPUs that it is not told of
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's and torch's generators for the ``with`` block; then put them back."""
    with random_state_kept():
        random.seed(seed)
        torch.manual_seed(seed)
        yield
