"""The oracle of the number formats: spot values, and PyTorch's casts wherever they are exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.helpers import fp8

TORCH = {
    fp8.E4M3: torch.float8_e4m3fn,
    fp8.E5M2: torch.float8_e5m2,
    fp8.FP16: torch.float16,
    fp8.BF16: torch.bfloat16,
}


@pytest.mark.parametrize("fmt", [fp8.E4M3, fp8.E5M2], ids=lambda fmt: fmt.name)
def test_decoding_is_pytorchs(fmt: fp8.FloatFormat) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(TORCH[fmt]).float().numpy()
    assert np.array_equal(fp8.table(fmt), values, equal_nan=True)
    assert np.array_equal(np.signbit(fp8.table(fmt)), np.signbit(values))


@pytest.mark.parametrize(
    ("fmt", "code", "value"),
    [
        (fp8.E4M3, 0x00, 0.0),
        (fp8.E4M3, 0x01, 2**-9),
        (fp8.E4M3, 0x08, 2**-6),
        (fp8.E4M3, 0x38, 1.0),
        (fp8.E4M3, 0xB9, -1.125),
        (fp8.E4M3, 0x7E, 448.0),
        (fp8.E5M2, 0x01, 2**-16),
        (fp8.E5M2, 0x3C, 1.0),
        (fp8.E5M2, 0x7B, 57344.0),
        (fp8.E5M2, 0xFC, -math.inf),
        (fp8.FP16, 0x7BFF, 65504.0),
        (fp8.BF16, 0x4049, 3.140625),
    ],
)
def test_spot_values(fmt: fp8.FloatFormat, code: int, value: float) -> None:
    assert fp8.decode(code, fmt) == value
    assert fp8.encode(value, fmt, saturate=False) == code


@pytest.mark.parametrize("fmt", TORCH, ids=lambda fmt: fmt.name)
def test_rounding_is_pytorchs(fmt: fp8.FloatFormat) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 200_000, dtype=np.uint32)
    spread = 2.0 ** generator.uniform(-20, 16, 200_000) * generator.choice([-1, 1], 200_000)
    grid = fp8.table(fmt)
    grid = np.unique(grid[np.isfinite(grid)].astype(np.float64))
    halves = (grid[1:] + grid[:-1]) / 2  # every tie, exact in float32
    random = np.concatenate([bits.view(np.float32), spread.astype(np.float32)])
    exact = np.concatenate([grid, halves]).astype(np.float32)
    values = np.concatenate([random[np.abs(random) <= fmt.largest], exact])
    near = np.concatenate([np.nextafter(values, side) for side in (-np.inf, np.inf)])
    values = np.concatenate([values, near[np.abs(near) <= fmt.largest]]).astype(np.float32)
    cast = torch.from_numpy(values).to(TORCH[fmt]).float().numpy()
    ours = fp8.quantise(values, fmt)
    assert np.array_equal(ours, cast) and np.array_equal(np.signbit(ours), np.signbit(cast))


def test_overflow_saturates_or_not() -> None:
    huge = np.array([464.1, 1e30, -1e30, np.inf, np.nan], dtype=np.float32)
    saturated = [448, 448, -448, 448, np.nan]
    assert np.array_equal(fp8.quantise(huge, fp8.E4M3), saturated, equal_nan=True)
    assert np.isnan(fp8.quantise(huge, fp8.E4M3, saturate=False)).all()
    assert fp8.quantise(464.0, fp8.E4M3, saturate=False) == 448  # a tie, to even
    assert fp8.quantise([61439, 61440], fp8.E5M2, saturate=False).tolist() == [57344, math.inf]
    assert fp8.quantise([1e30, -1e30], fp8.E5M2).tolist() == [57344, -57344]
    assert fp8.quantise([65519, 65520], fp8.FP16, saturate=False).tolist() == [65504, math.inf]


def test_integers_round_to_even_and_clamp() -> None:
    scaled = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 126.5, 127.5, 300, -300, math.inf]
    expected = [0, 2, 2, 0, -2, -2, 0, 126, 127, 127, -127, 127]
    assert fp8.encode_integer(scaled, 8).tolist() == expected
    assert fp8.encode_integer([6.5, 7.5, -8, 3.2], 4).tolist() == [6, 7, -7, 3]
