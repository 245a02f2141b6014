"""The GPU's products in few bits against the reference arithmetic of `pahq_plugin.formats`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pahq_plugin.formats import get_format
from tests.helpers.gpu import DEVICE
from tests.test_kernels import both, values

NEARER = {"fp8_e4m3": 50, "bf16": 100, "fp16": 100}
"""How much nearer a product is to the reference than the reference to FP32 numbers. Hopper's FP8 units
align the summands of a product to about 14 bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2); seen: 99."""


def noise(x: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return float((x.double() - exact).square().mean().sqrt())


@pytest.mark.parametrize("name", NEARER)
@pytest.mark.parametrize("depth", [8, 96, 1100, 4096])
@pytest.mark.parametrize("width", [1, 8, 16, 20, 64, 80, 128])
@pytest.mark.parametrize("heads", [None, 3])
def test_kernels_are_near_the_reference(name: str, depth: int, width: int, heads: int | None) -> None:
    number_format, lead = get_format(name), () if heads is None else (heads,)
    for n in (0, 1, 17, 64):
        x = values((*lead, n, depth), 1.0, n, 0.0).to(DEVICE)
        weight = values((*lead, depth, width), 1.0, 7, 0.0).to(DEVICE)
        fast, slow = both(number_format, x, weight, "row")
        assert fast.shape == slow.shape and fast.dtype == torch.float32
        if n:
            exact, reference = x.double() @ weight.double(), slow.double()
            nearer = noise(slow, exact) / noise(fast, reference)
            print(name, depth, width, heads, n, f"{nearer:.0f} times nearer")
            assert nearer >= NEARER[name]


@pytest.mark.parametrize("name", NEARER)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(name: str, bad: float) -> None:
    x, weight = values((4, 16), 1.0, 0).to(DEVICE), values((16, 8), 1.0, 1).to(DEVICE)
    x[2, 3] = bad
    fast, _ = both(get_format(name), x, weight, "row")
    assert not fast[2].isfinite().any()
    assert fast[[0, 1, 3]].isfinite().all()
