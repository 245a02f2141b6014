"""The GPU's products in few bits against the reference arithmetic of `pahq_plugin.precision.formats`."""

from __future__ import annotations

import math

import pytest
import torch

from pahq_plugin.precision.formats import get_format
from tests.helpers.gpu import DEVICE
from tests.precision.test_kernels import both, values

OFF = {"fp8_e4m3": 2**-10, "bf16": 2**-18, "fp16": 2**-18}
"""How far a number of a product may be from the reference's, over the sum of its summands' magnitudes.
Hopper's FP8 units keep about 14 bits of each summand (DeepSeek-V3, arXiv 2412.19437, section 3.3.2)."""


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("depth", [8, 96, 1100, 4096])
@pytest.mark.parametrize("width", [1, 8, 16, 20, 64, 80, 128])
@pytest.mark.parametrize("heads", [None, 3])
def test_kernels_are_near_the_reference(name: str, depth: int, width: int, heads: int | None) -> None:
    number_format, lead = get_format(name), () if heads is None else (heads,)
    worst = 0.0
    for n in (0, 1, 17, 64):
        x = values((*lead, n, depth), 1.0, n, 0.0).to(DEVICE)
        weight = values((*lead, depth, width), 1.0, 7, 0.0).to(DEVICE)
        fast, slow = both(number_format, x, weight, "row")
        assert fast.shape == slow.shape and fast.dtype == torch.float32
        if n:
            magnitudes = x.double().abs() @ weight.double().abs()
            worst = max(worst, float(((fast - slow).abs() / magnitudes).max()))
    print(f"{name} {depth} {width}: off by 2^{math.log2(worst or 1e-30):.1f}")
    assert worst <= OFF[name]


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(name: str, bad: float) -> None:
    x, weight = values((4, 16), 1.0, 0).to(DEVICE), values((16, 8), 1.0, 1).to(DEVICE)
    x[2, 3] = bad
    fast, _ = both(get_format(name), x, weight, "row")
    assert not fast[2].isfinite().any()
    assert fast[[0, 1, 3]].isfinite().all()
