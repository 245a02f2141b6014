"""Kernels against the reference arithmetic of `pahq_plugin.precision.formats`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pahq_plugin.errors import ConfigError
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import (
    FORMATS,
    GRANULARITIES,
    Granularity,
    NumberFormat,
    get_format,
    multiply,
)
from pahq_plugin.precision.kernels import cpu_has_vnni, kernel_for, product_of
from pahq_plugin.precision.linear import low_product
from pahq_plugin.precision.weights import LowWeights

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not cpu_has_vnni(), reason="this CPU has no VNNI")

SHAPES = st.tuples(
    st.integers(0, 40),  # rows
    st.one_of(st.integers(1, 130), st.just(1100)),  # d_in; FP32 adds 1100 products of int8 inexactly
    st.integers(1, 130),  # d_out
)
SIZES = st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e4, 1e30])


def values(shape: tuple[int, ...], size: float, seed: int, share_of_zeros: float = 0.2) -> Tensor:
    """Random numbers of very different magnitudes, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(torch.randn(shape, generator=generator))
    x[torch.rand(shape, generator=generator) < share_of_zeros] = 0.0
    return x * size


def both(
    number_format: NumberFormat, x: Tensor, weight: Tensor, granularity: Granularity
) -> tuple[Tensor, Tensor]:
    """The kernel's result and the reference's."""
    low_x = number_format.quantise_activation(x, granularity, 0 if weight.ndim == 3 else None)
    low_weight = LowWeights(granularity, "native").get("w", weight, number_format)
    kernel = kernel_for(number_format, x.device, "native")
    return product_of(kernel)(low_x, low_weight), multiply(low_x, low_weight)


@needs_vnni
@given(SHAPES, SIZES, SIZES, st.sampled_from(GRANULARITIES), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_int8_gives_the_bits_of_the_reference(
    shape: tuple[int, int, int], size: float, weight_size: float, granularity: Granularity, seed: int
) -> None:
    n, d_in, d_out = shape
    x, weight = values((n, d_in), size, seed), values((d_in, d_out), weight_size, seed + 1)
    fast, slow = both(get_format("int8"), x, weight, granularity)
    assert fast.shape == (n, d_out) and fast.equal(slow)


@needs_vnni
@given(st.integers(1, 5), SHAPES, st.sampled_from(GRANULARITIES), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_int8_of_heads_gives_the_bits_of_the_reference(
    heads: int, shape: tuple[int, int, int], granularity: Granularity, seed: int
) -> None:
    n, d_in, d_out = shape
    x, weight = values((heads, n, d_in), 1.0, seed), values((heads, d_in, d_out), 1.0, seed + 1)
    fast, slow = both(get_format("int8"), x, weight, granularity)
    assert fast.shape == (heads, n, d_out) and fast.equal(slow)


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_int8_on_other_dtypes_and_more_axes(dtype: torch.dtype) -> None:
    x, weight = values((3, 4, 5, 24), 1.0, 0).to(dtype), values((24, 8), 1.0, 1).to(dtype)
    fast, slow = both(get_format("int8"), x, weight, "row")
    assert fast.shape == (3, 4, 5, 8) and fast.dtype == slow.dtype and fast.equal(slow)


@needs_vnni
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    x, weight = values((4, 16), 1.0, 0), values((16, 8), 1.0, 1)
    x[2, 3] = bad
    fast, _ = both(get_format("int8"), x, weight, "row")
    assert not fast[2].isfinite().any()
    assert fast[[0, 1, 3]].isfinite().all()


@needs_vnni
def test_gradients_are_those_of_the_reference() -> None:
    grads = []
    for demand in ("native", "eager"):
        x, weight = values((6, 16), 1.0, 0).requires_grad_(), values((16, 8), 1.0, 1).requires_grad_()
        number_format = get_format("int8")
        low = LowWeights("row", demand).get("w", weight, number_format)
        out = low_product(x, weight, low, number_format, "row", demand=demand)
        out.square().sum().backward()
        assert x.grad is not None and weight.grad is not None
        grads.append((x.grad, weight.grad))
    assert all(fast.equal(slow) for fast, slow in zip(*grads, strict=True))


def test_eager_takes_no_kernel() -> None:
    for number_format in FORMATS.values():
        assert kernel_for(number_format, CPU, "eager") is None


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "bf16", "fp16"])
def test_a_kernel_that_is_demanded_must_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        kernel_for(get_format(name), CPU, "native")
    assert kernel_for(get_format(name), CPU) is None


def test_fp32_needs_no_kernel() -> None:
    assert kernel_for(get_format("fp32"), CPU, "native") is None


def test_an_unknown_demand_is_refused() -> None:
    with pytest.raises(ConfigError, match="fast"):
        PrecisionConfig(kernel="fast")  # type: ignore[arg-type]
