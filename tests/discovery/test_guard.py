"""The guard band: what it doubts, how it is calibrated, when it grows."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pahq_plugin.discovery.guard import (
    FLOOR_OF_FP32,
    RELATIVE,
    SAMPLE,
    GuardBand,
    calibrated_band,
    fixed_band,
    make_guard,
)
from tests.helpers.fake_engine import FakeEngine, edges, random_loss, relative_noise, swept

EFFECTS = st.floats(-5, 5)

THRESHOLDS = st.floats(1e-4, 1)


def test_the_band_is_relative_over_a_floor() -> None:
    band = GuardBand(threshold=1.0, relative=0.25, floor=0.125)
    assert band.half_width(2.0) == band.half_width(-2.0) == 0.25 * 2 + 8 * 0.125
    assert band.half_width(0.0) == 1.0


@pytest.mark.parametrize(
    ("effect", "doubted"),
    [(1.0, True), (1.3, True), (1.34, False), (0.8, True), (0.76, False), (0.0, False), (-9, False)],
)
def test_effects_near_the_threshold_are_doubted(effect: float, doubted: bool) -> None:
    """With g = 1/4: above 1 up to 4/3, below it down to 4/5."""
    assert GuardBand(1.0, 0.25, 0.0).doubts(effect) is doubted


@given(effect=EFFECTS, threshold=THRESHOLDS, relative=st.floats(0, 2), noise=st.floats(-1, 1))
def test_noise_within_the_band_never_flips_a_trusted_decision(
    effect: float, threshold: float, relative: float, noise: float
) -> None:
    band = GuardBand(threshold, relative, 1e-3)
    exact = effect + noise * band.half_width(effect) * (1 - 1e-9)
    if not band.doubts(effect):
        assert (exact < threshold) == (effect < threshold)


def test_the_band_grows_with_what_is_gone_once_a_row_was_seen_off() -> None:
    """Off by 1/8 with 1/2 gone: a quarter of it, four times which is the band's width."""
    band = GuardBand(1.0, 0.0, 0.0)
    assert not band.doubts(0.76, gone=0.25)
    band.see_drift(8e-7, 1e-6)  # what FP32 losses round to
    assert band.drift == 0.0
    band.see_drift(0.125 + 8e-7, 0.5)
    assert band.doubts(0.76, gone=0.25) and not band.doubts(0.74, gone=0.25)
    assert not band.doubts(0.76)
    band.see_drift(0.001, 0.5)
    band.see_drift(0.001, 0.0)
    assert band.drift == pytest.approx(0.25, rel=1e-9)
    fixed = fixed_band(1.0, 0.1)
    fixed.see_drift(0.125, 0.5)
    assert fixed.drift == 0.0


@given(effect=EFFECTS, threshold=THRESHOLDS)
def test_fixed_bands_of_zero_and_infinity(effect: float, threshold: float) -> None:
    assert not fixed_band(threshold, 0.0).doubts(effect)
    assert not fixed_band(threshold, 0.0).doubts(threshold)
    assert fixed_band(threshold, math.inf).doubts(effect)
    assert fixed_band(threshold, math.inf).doubts(0.0)


@pytest.mark.parametrize("relative", [0.0, 0.3, math.inf])
def test_fixed_bands_never_widen(relative: float) -> None:
    band = fixed_band(0.01, relative)
    before = (band.relative, band.floor)
    assert band.fixed and not band.watch(0.0, 5.0) and not band.watch(5.0, 0.0)
    assert (band.relative, band.floor, band.widened) == (*before, 0)


@example(0.7624268742845861, 0.36055893313874937, 1.0, 0.361328125)  # rounds to just below twice
@given(screened=EFFECTS, exact=EFFECTS, threshold=THRESHOLDS, relative=st.floats(0, 1))
def test_a_widened_band_is_twice_the_difference(
    screened: float, exact: float, threshold: float, relative: float
) -> None:
    band = GuardBand(threshold, relative, 1e-4)
    before = band.half_width(screened)
    if band.watch(screened, exact):
        assert band.half_width(screened) >= 2 * abs(screened - exact) * (1 - 1e-9)
        assert band.half_width(screened) > before
        assert band.widened == 1
        assert not band.watch(screened, exact)
    else:
        assert band.half_width(screened) == before and band.widened == 0


@given(screened=EFFECTS, exact=EFFECTS, threshold=THRESHOLDS)
def test_a_difference_that_would_flip_a_decision_beyond_half_the_band_widens_it(
    screened: float, exact: float, threshold: float
) -> None:
    band = GuardBand(threshold, 0.3, 1e-4)
    flips = (screened < threshold) != (exact < threshold)
    if flips and abs(screened - exact) > band.half_width(screened) / 2:
        assert band.watch(screened, exact)


def test_differences_far_from_the_threshold_do_not_matter() -> None:
    """200 that is really 280 is off by more than half the band, and kept either way."""
    band = GuardBand(0.01, 0.3, 1e-6)
    assert not band.watch(200.0, 280.0)
    assert band.watch(0.02, 0.001)


def test_without_moving_edges_the_band_is_the_least_one() -> None:
    for pairs in ([], [(0.0, 0.0)] * 5):
        band = calibrated_band(0.01, loss=3.0, pairs=pairs)
        assert (band.relative, band.floor) == (RELATIVE, 3 * FLOOR_OF_FP32)
        assert not band.fixed


def test_the_floor_is_the_median_difference_of_the_smaller_half() -> None:
    small = [(0.001 + d, 0.001) for d in (0.0001, 0.0002, 0.0009)]
    large = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    band = calibrated_band(0.01, loss=0.0, pairs=large + small + [(0.0, 0.0)])
    assert math.isclose(band.floor, 0.0002, rel_tol=1e-6)
    assert band.relative == RELATIVE


def test_the_relative_width_grows_with_the_noise_of_large_effects() -> None:
    small = [(1e-6, 1e-6)] * 3
    large = [(1.1, 1.0), (1.8, 2.0), (3.3, 3.0)]  # each off by a tenth
    band = calibrated_band(0.01, loss=0.0, pairs=small + large)
    assert math.isclose(band.relative, 1.0, rel_tol=1e-6)
    assert calibrated_band(0.01, 0.0, small + [(1.001, 1.0)] * 3).relative == RELATIVE


def test_only_effects_above_100_floors_show_relative_noise() -> None:
    floor = 1e-3
    small = [(2 * floor, floor)] * 3  # each off by the floor
    for floors, is_large in ((99.9, False), (100.1, True)):
        large = [(1.5 * floors * floor, floors * floor)] * 3
        band = calibrated_band(0.01, loss=0.0, pairs=small + large)
        assert math.isclose(band.floor, floor)
        assert math.isclose(band.relative, 5.0 if is_large else RELATIVE)


@given(st.lists(st.tuples(EFFECTS, EFFECTS), max_size=12), st.floats(-9, 9))
def test_calibrated_bands_are_never_narrower_than_fp32(
    pairs: list[tuple[float, float]], loss: float
) -> None:
    band = calibrated_band(0.01, loss, pairs)
    assert band.relative >= RELATIVE and math.isfinite(band.relative)
    assert band.floor >= FLOOR_OF_FP32 * max(1.0, abs(loss))


def test_a_guard_of_zero_trusts_every_effect() -> None:
    order = edges(8)
    engine = FakeEngine(random_loss(order, 2), lookahead=3, noise=relative_noise(2, 0.9))
    guard = make_guard(engine, order, 0.5, 0, seed=0)
    assert guard is None
    decisions = swept(engine, order, 0.5, guard).run()
    assert not engine.asked_exactly and not any(decision.exact for decision in decisions)


def test_no_guard_where_none_is_needed() -> None:
    order = edges(5)
    screening = FakeEngine(random_loss(order, 1), noise=relative_noise(1, 0.1))
    exact = FakeEngine(random_loss(order, 1))
    assert make_guard(screening, order, 0.5, 0.0, seed=0) is None
    assert make_guard(exact, order, 0.5, "auto", seed=0) is None
    assert make_guard(exact, order, 0.5, math.inf, seed=0) is None
    assert screening.evaluations == exact.evaluations == 0


def test_a_number_makes_a_fixed_band() -> None:
    order = edges(5)
    engine = FakeEngine(random_loss(order, 1), noise=relative_noise(1, 0.1))
    guard = make_guard(engine, order, 0.5, 0.7, seed=0)
    assert guard is not None and guard.fixed and guard.relative == 0.7
    assert engine.evaluations == 0


def test_auto_calibrates_on_the_whole_model() -> None:
    order = edges(40)
    engine = FakeEngine(random_loss(order, 1), noise=relative_noise(1, 0.5))
    guard = make_guard(engine, order, 0.5, "auto", seed=0)
    assert guard is not None and not guard.fixed and guard.threshold == 0.5
    assert len(engine.asked_exactly) == SAMPLE == len(set(engine.asked_exactly))
    assert engine.evaluations == 2 * SAMPLE and not engine.removed
    quiet = FakeEngine(random_loss(order, 1), noise=relative_noise(1, 1e-6))
    narrow = make_guard(quiet, order, 0.5, "auto", seed=0)
    assert narrow is not None
    assert narrow.half_width(0.5) < guard.half_width(0.5)
