"""Number formats against an oracle that works on the bits of a code (`tests.helpers.fp8`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pahq_plugin.errors import ConfigError, FormatError
from pahq_plugin.precision.formats import (
    FORMATS,
    GRANULARITIES,
    SCALE_FLOOR,
    Quantised,
    check_granularity,
    get_format,
    high_dtype,
    multiply,
)
from tests.helpers import fp8

FLOATS = {fmt.name: fmt for fmt in (fp8.E4M3, fp8.E5M2, fp8.FP16, fp8.BF16)}
BITS = {"int8": 8, "int4": 4}

LOW = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"]
SCALED = ["fp8_e4m3", "fp8_e5m2", "int8", "int4"]


def nearest(x: np.ndarray, name: str) -> np.ndarray:
    """Float32 values as the format holds them, by integer arithmetic on their bits."""
    return fp8.encode_integer(x, BITS[name]) if name in BITS else fp8.quantise(x, FLOATS[name])


def assert_same(codes: Tensor, expected: np.ndarray) -> None:
    """Equal values, and equal signs of zeros."""
    got = codes.to(torch.float64).numpy()
    np.testing.assert_array_equal(got, expected)
    if codes.dtype.is_floating_point:
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Casts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_all_256_codes_mean_what_the_format_says(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(get_format(name).storage)
    np.testing.assert_array_equal(codes.float().numpy(), fp8.table(FLOATS[name]))


@pytest.mark.parametrize("name", FLOATS)
def test_every_finite_code_survives_a_cast(name: str) -> None:
    bits = FLOATS[name].bits
    dtype = torch.uint8 if bits == 8 else torch.int16
    patterns = torch.arange(1 << bits, dtype=torch.int32).to(dtype)
    values = patterns.view(get_format(name).storage).float()
    finite = values.isfinite()
    again = get_format(name).cast(values[finite])
    assert torch.equal(again.view(dtype), patterns[finite])


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_midpoints_round_to_even_and_neighbours_to_nearest(name: str) -> None:
    values = fp8.table(FLOATS[name])[:128]
    values = values[np.isfinite(values)]
    middle = (values[1:] + values[:-1]) / 2
    points = np.concatenate(
        [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    )
    points = np.concatenate([points, -points])
    assert_same(get_format(name).cast(torch.from_numpy(points)), nearest(points, name))


def test_the_edges_of_e4m3() -> None:
    x = torch.tensor([448.0, 463.9, 464.0, 480.0, 1e30, -448.0, -480.0, 0.0, -0.0])
    got = get_format("fp8_e4m3").cast(x).float()
    assert got.tolist() == [448.0] * 5 + [-448.0] * 2 + [0.0, -0.0]
    assert got.signbit().tolist() == [False] * 5 + [True] * 2 + [False, True]


def test_subnormals_of_e4m3() -> None:
    least = 2.0**-9
    x = torch.tensor([least, least / 2, least * 0.5001, least * 1.5, least * 2.5, 2.0**-6])
    got = get_format("fp8_e4m3").cast(x).float().tolist()
    assert got == [least, 0.0, least, 2 * least, 2 * least, 2.0**-6]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integers_clamp_and_round_ties_to_even(name: str) -> None:
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 6.5, 7.5, 126.5, 127.5, 1e9, -1e9, 0.0])
    assert_same(get_format(name).cast(torch.from_numpy(x)), nearest(x, name))


@pytest.mark.parametrize("name", LOW)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_casts_of_any_float_are_the_nearest(name: str, values: list[float]) -> None:
    x = np.array(values, dtype=np.float32)
    assert_same(get_format(name).cast(torch.from_numpy(x)), nearest(x, name))


@pytest.mark.parametrize("name", LOW)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-3, 0.05, 1.0, 30.0, 300.0]))
def test_casts_of_usual_magnitudes_are_the_nearest(name: str, seed: int, spread: float) -> None:
    x = (np.random.default_rng(seed).standard_normal(512) * spread).astype(np.float32)
    assert_same(get_format(name).cast(torch.from_numpy(x)), nearest(x, name))


@pytest.mark.parametrize("name", FLOATS)
def test_casts_of_float64_round_once(name: str) -> None:
    """A detour through FP32 lands on a midpoint first, and then on the even neighbour."""
    step, little = 2.0 ** -FLOATS[name].mantissa_bits, 2.0**-40
    x = torch.tensor([1 + step / 2 + little, 1 + 3 * step / 2 - little], dtype=torch.float64)
    assert get_format(name).cast(x).double().tolist() == [1 + step, 1 + step]


def test_fp32_is_the_identity() -> None:
    x = random_tensor(5, 7)
    assert torch.equal(get_format("fp32").round_trip(x, (-1,)), x)


# Scales -------------------------------------------------------------------------------------------

WEIGHT_SHAPES = {"row": (3, 1, 5), "head": (3, 1, 1), "tensor": (1, 1, 1), "none": (1, 1, 1)}
ACTIVATION_SHAPES = {
    "row": (2, 4, 3, 1),
    "head": (1, 1, 3, 1),
    "tensor": (1,) * 4,
    "none": (1,) * 4,
}
SHARED = {"row": (1,), "head": (1, 2), "tensor": (0, 1, 2)}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weight_scales_have_the_documented_shapes(name: str, granularity: str) -> None:
    x = random_tensor(3, 8, 5)
    weight = get_format(name).quantise_weight(x, check_granularity(granularity))
    assert weight.scale.shape == WEIGHT_SHAPES[granularity]
    assert weight.codes.shape == (3, 8, 5)
    assert weight.codes.dtype == get_format(name).storage
    assert weight.scale.dtype == torch.float32


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "int8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_activation_scales_have_the_documented_shapes(name: str, granularity: str) -> None:
    x = random_tensor(2, 4, 3, 8)
    quantised = get_format(name).quantise_activation(x, check_granularity(granularity), head_axis=2)
    assert quantised.scale.shape == ACTIVATION_SHAPES[granularity]


def test_without_heads_the_head_scale_is_one_for_all() -> None:
    quantised = get_format("int8").quantise_activation(random_tensor(2, 4, 8), "head")
    assert quantised.scale.shape == (1, 1, 1)


def test_flat_weights_have_a_scale_per_column() -> None:
    assert get_format("int8").quantise_weight(random_tensor(8, 5), "row").scale.shape == (1, 5)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("granularity", SHARED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
def test_the_largest_entry_of_a_slice_hits_the_largest_value(
    name: str, granularity: str, seed: int, exponent: int
) -> None:
    weight = random_tensor(3, 8, 5, seed=seed) * 2.0**exponent
    low = get_format(name).quantise_weight(weight, check_granularity(granularity))
    peaks = low.codes.float().abs().amax(dim=SHARED[granularity])
    assert torch.equal(peaks, torch.full_like(peaks, get_format(name).largest))
    largest = weight.abs().amax(dim=SHARED[granularity])
    torch.testing.assert_close(low.dequantise().abs().amax(dim=SHARED[granularity]), largest)


@pytest.mark.parametrize("name", LOW)
def test_no_scale_means_codes_are_the_cast_values(name: str) -> None:
    x = random_tensor(3, 8, 5) * 50
    low = get_format(name).quantise_weight(x, "none")
    assert torch.equal(low.scale, torch.ones(1, 1, 1))
    assert torch.equal(low.codes.float(), get_format(name).cast(x).float())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_sixteen_bit_floats_are_not_scaled(name: str) -> None:
    low = get_format(name).quantise_weight(random_tensor(3, 8, 5), "row")
    assert bool((low.scale == 1).all())


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_zero_slices_give_zeros(name: str, granularity: str) -> None:
    weight = random_tensor(3, 8, 5)
    weight[1] = 0
    weight[:, :, 2] = 0
    value = get_format(name).quantise_weight(weight, check_granularity(granularity)).dequantise()
    assert bool(value.isfinite().all())
    assert bool((value[1] == 0).all()) and bool((value[:, :, 2] == 0).all())
    zeros = get_format(name).quantise_weight(torch.zeros(2, 3, 4), check_granularity(granularity))
    assert torch.equal(zeros.dequantise(), torch.zeros(2, 3, 4))
    assert float(zeros.scale.min()) >= SCALE_FLOOR


@pytest.mark.parametrize("name", LOW)
def test_values_far_below_the_scale_floor_stay_finite(name: str) -> None:
    value = get_format(name).quantise(torch.full((2, 3), 1e-44), (-1,)).dequantise()
    assert bool(value.isfinite().all())
    assert float(value.abs().max()) <= 2e-44


def test_float64_keeps_its_scale_in_float64() -> None:
    x = random_tensor(2, 3).double()
    assert get_format("int8").quantise(x, (-1,)).scale.dtype == torch.float64
    assert high_dtype(torch.float64) == torch.float64
    assert high_dtype(torch.bfloat16) == torch.float32


# Not finite, empty, refused -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8"])
def test_activations_that_are_not_finite_stay_visible(name: str, granularity: str, bad: float) -> None:
    x = random_tensor(2, 4, 3, 8)
    x[1, 2, 0, 3] = bad
    quantised = get_format(name).quantise_activation(x, check_granularity(granularity), head_axis=2)
    assert not bool(quantised.dequantise()[1, 2, 0, 3].isfinite())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_scale_keeps_other_rows_finite(bad: float) -> None:
    x = random_tensor(4, 8)
    x[1, 3] = bad
    value = get_format("int8").quantise_activation(x, "row").dequantise()
    assert bool(value[[0, 2, 3]].isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_that_are_not_finite_are_refused(name: str, granularity: str, bad: float) -> None:
    weight = random_tensor(3, 8, 5)
    weight[0, 1, 2] = bad
    with pytest.raises(FormatError, match=name):
        get_format(name).quantise_weight(weight, check_granularity(granularity))


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "int8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_empty_batch_gives_an_empty_product(name: str, granularity: str) -> None:
    number_format = get_format(name)
    x = number_format.quantise_activation(torch.zeros(0, 6, 8), check_granularity(granularity))
    weight = number_format.quantise_weight(random_tensor(8, 5), check_granularity(granularity))
    assert multiply(x, weight).shape == (0, 6, 5)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError) as unknown_format:
        get_format("fp7")
    with pytest.raises(ConfigError) as unknown_scale:
        check_granularity("column")
    assert all(name in str(unknown_format.value) for name in FORMATS)
    assert all(name in str(unknown_scale.value) for name in GRANULARITIES)
    assert "'fp7'" in str(unknown_format.value) and "'column'" in str(unknown_scale.value)


def test_the_table_of_formats_is_consistent() -> None:
    assert [f.is_low for f in FORMATS.values()] == [name != "fp32" for name in FORMATS]
    assert [name for name, f in FORMATS.items() if f.is_integer] == ["int8", "int4"]
    assert [name for name, f in FORMATS.items() if not f.activations] == ["int4"]
    assert {n: get_format(n).largest for n in FLOATS} == {n: f.largest for n, f in FLOATS.items()}


# Products -----------------------------------------------------------------------------------------


def integers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Quantised:
    """Random int8 codes under a scale of 1."""
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-127, 128, shape, dtype=np.int8))
    return Quantised(codes, torch.ones([1] * len(shape), dtype=dtype))


@pytest.mark.parametrize("depth", [1, 7, 1040, 1041, 2000])
def test_products_of_integers_are_exact(depth: int) -> None:
    """In FP64 the sums are the integers themselves; in FP32 they are rounded once, at the end."""
    for wide, result in ((torch.float64, np.float64), (torch.float32, np.float32)):
        x, weight = (
            integers(2, 3, depth, seed=1, dtype=wide),
            integers(depth, 4, seed=2, dtype=wide),
        )
        exact = x.codes.numpy().astype(np.int64) @ weight.codes.numpy().astype(np.int64)
        np.testing.assert_array_equal(multiply(x, weight).numpy(), exact.astype(result))


@pytest.mark.parametrize("granularity", ["row", "tensor", "none"])
def test_columns_of_a_weight_are_those_of_its_values(granularity: Any) -> None:
    made = get_format("fp8_e4m3").quantise_weight(random_tensor(6, 8), granularity)
    for some in (slice(0, 3), slice(3, 8), slice(5, 6)):
        assert made.columns(some).dequantise().equal(made.dequantise()[:, some])


@pytest.mark.parametrize("depth", [1041, 2000])
def test_long_sums_of_large_codes_are_exact(depth: int) -> None:
    """From 1,041 products of 127 * 127 on, a sum exceeds the integers that FP32 adds exactly."""
    generator = torch.Generator().manual_seed(depth)
    ones = torch.ones(1, 1)
    draw = partial(torch.randint, 100, 128, generator=generator, dtype=torch.int8)
    for _ in range(20):
        x, weight = draw((2, 3, depth)), draw((2, depth, 5))
        exact = (x.long() @ weight.long()).float()
        assert multiply(Quantised(x, ones), Quantised(weight, ones)).equal(exact)


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "fp8_e5m2", "int8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_products_are_those_of_the_dequantised_operands(name: str, granularity: str) -> None:
    number_format = get_format(name)
    x = number_format.quantise_activation(
        random_tensor(3, 6, 16), check_granularity(granularity), head_axis=0
    )
    weight = number_format.quantise_weight(random_tensor(3, 16, 5), check_granularity(granularity))
    exact = x.dequantise().double() @ weight.dequantise().double()
    torch.testing.assert_close(multiply(x, weight).double(), exact, rtol=1e-5, atol=1e-5)


def test_bytes_count_codes_and_scales() -> None:
    low = get_format("int8").quantise_weight(random_tensor(3, 8, 5), "row")
    assert low.nbytes == 3 * 8 * 5 + 4 * 3 * 5


@pytest.mark.full
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "int8", "int4", "fp16", "bf16"])
def test_every_bfloat16_value_is_cast_to_the_nearest(name: str) -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = patterns.view(torch.bfloat16).float()
    values = values[values.isfinite()]
    assert_same(get_format(name).cast(values), nearest(values.numpy(), name))
