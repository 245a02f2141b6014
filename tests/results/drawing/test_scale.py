"""Colours and widths of effects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahq_plugin.results.drawing.scale import (
    NEGATIVE,
    POSITIVE,
    THICKEST,
    THINNEST,
    EffectScale,
    between,
)
from tests.helpers.records import EFFECTS


def test_the_scale_is_logarithmic() -> None:
    scale = EffectScale([0.001, 0.1])
    assert [scale.strength(e) for e in (0.001, 0.01, 0.1)] == pytest.approx([0, 0.5, 1])
    assert scale.strength(-0.01) == scale.strength(0.01)


def test_the_ends_have_the_colours_and_widths_of_the_ends() -> None:
    scale = EffectScale([0.001, -0.1])
    assert scale.colour(0.1) == POSITIVE[-1] and scale.colour(-0.1) == NEGATIVE[-1]
    assert scale.colour(0.001) == POSITIVE[0] and scale.colour(-0.001) == NEGATIVE[0]
    assert (scale.width(0.001), scale.width(0.1)) == (THINNEST, THICKEST)


def test_one_tiny_effect_does_not_make_the_others_look_large() -> None:
    assert EffectScale([1e-12, 0.1, 1.0]).strength(0.1) == pytest.approx(0.75)


def test_effects_of_nearly_one_size_look_nearly_the_same() -> None:
    assert EffectScale([0.9, 1.0]).strength(0.9) > 0.9


def test_equal_effects_are_all_strong_and_no_effect_is_not() -> None:
    scale = EffectScale([0.5, 0.5, 0.0])
    assert scale.strength(0.5) == 1 and scale.strength(0.0) == 0 and scale.samples() == [0.5]


@pytest.mark.parametrize("effects", [[], [0.0, 0.0]])
def test_without_effects_everything_is_faint(effects: list[float]) -> None:
    scale = EffectScale(effects)
    assert scale.strength(0.0) == 0 and scale.samples() == []


def test_samples_are_the_ends_and_the_powers_of_ten_between() -> None:
    assert EffectScale([0.002, 13]).samples() == pytest.approx([0.002, 0.01, 0.1, 1, 13])


def test_between() -> None:
    assert between(["#000000", "#204060"], 0.5) == "#102030"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG."""
    parts = [value / 255 for value in bytes.fromhex(colour[1:])]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("stops", [POSITIVE, NEGATIVE])
def test_colours_darken_steadily_and_are_seen_on_white(stops: tuple[str, ...]) -> None:
    seen = [luminance(between(stops, step / 20)) for step in range(21)]
    assert seen == sorted(seen, reverse=True)
    assert 1.05 / (seen[0] + 0.05) > 2 and 1.05 / (seen[-1] + 0.05) > 10


@given(st.lists(EFFECTS))
def test_any_effects_have_a_place_on_the_scale(effects: list[float]) -> None:
    scale = EffectScale(effects)
    for effect in effects:
        assert 0 <= scale.strength(effect) <= 1 + 1e-9
        assert THINNEST <= scale.width(effect) <= THICKEST
        assert len(scale.colour(effect)) == 7
    assert scale.samples() == sorted(set(scale.samples())) and len(scale.samples()) <= 7
