"""What needs an NVIDIA GPU; skipped elsewhere: run ``pytest tests/gpu`` where there is one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
