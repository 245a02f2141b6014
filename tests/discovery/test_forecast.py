"""Forecasts are exact where the loss is quadratic, and otherwise meet the slopes at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_plugin.discovery.forecast import Forecast
from pahq_plugin.engines.protocol import Slopes


class Quadratic:
    """The loss ``g . x + |P^T x|^2 / 2`` of the removals x."""

    def __init__(self, seed: int, count: int) -> None:
        draw = np.random.default_rng(seed)
        self.slopes, self.probes = draw.normal(size=count), 0.5 * draw.normal(size=(count, 3))

    def loss(self, gone: np.ndarray) -> float:
        return float(self.slopes @ gone + np.square(gone @ self.probes).sum() / 2)

    def slopes_at(self, gone: np.ndarray) -> np.ndarray:
        return self.slopes + self.probes @ (gone @ self.probes)

    def sequential(self, threshold: float, known: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Effects in order, and what is removed in the end."""
        gone, effects = np.zeros(len(self.slopes)), []
        for i in range(len(gone)):
            without = gone.copy()
            without[i] = 1
            effects.append(known.get(i, self.loss(without) - self.loss(gone)))
            gone = gone if effects[-1] >= threshold else without
        return np.array(effects), gone

    def forecast(self) -> Forecast:
        return Forecast.of(Slopes(self.slopes, self.probes))


CASES = given(seed=st.integers(0, 10**6), count=st.integers(1, 12), threshold=st.floats(-0.5, 1.5))


@settings(max_examples=60, deadline=None)
@CASES
def test_a_quadratic_loss_is_forecast_exactly(seed: int, count: int, threshold: float) -> None:
    true = Quadratic(seed, count)
    known = {i: float(i % 3) for i in range(0, count, 4)}
    for given_ in ({}, known):
        effects, gone = true.sequential(threshold, given_)
        assert true.forecast().effects(threshold, given_) == pytest.approx(effects)
    kept = gone == 0
    bent = true.forecast().bent(true.slopes_at(gone), kept)  # nothing is left to explain
    assert bent.bend == pytest.approx(0, abs=1e-9) and bent.doubt == pytest.approx(0, abs=1e-9)


@settings(max_examples=40, deadline=None)
@CASES
def test_a_forecast_goes_on_behind_decisions(seed: int, count: int, threshold: float) -> None:
    true = Quadratic(seed, count)
    effects, gone = true.sequential(threshold, {})
    for done in range(count + 1):
        rest = true.forecast().behind((gone[:done] == 0).tolist())
        assert rest.effects(threshold, {}) == pytest.approx(effects[done:])


@settings(max_examples=40, deadline=None)
@CASES
def test_sums_over_some_members_of_a_run(seed: int, count: int, threshold: float) -> None:
    true = Quadratic(seed, count + 2)
    start = np.zeros(count + 2)
    start[0] = 1
    forecast = true.forecast().behind([False])
    effects = forecast.effects(np.inf, {})
    rows = np.random.default_rng(seed).random((3, count)) < 0.5
    run = slice(1, count + 1)
    before = start.copy()
    before[1] = 1  # the candidate before the run is removed, too
    forecast_there = forecast.behind([False])
    found = forecast_there.sums(slice(0, count), effects[run], rows)
    for row, change in zip(rows, found, strict=True):
        gone = before.copy()
        gone[2:] = row
        assert change == pytest.approx(true.loss(gone) - true.loss(before))
    assert forecast.sums(run, effects[run], rows) == pytest.approx(found)


def test_an_unexplained_change_of_slopes_bends_the_forecast() -> None:
    slopes = Slopes(np.zeros(4), np.ones((4, 1)))
    forecast = Forecast.of(slopes).bent(np.full(4, 3.0 + 0.8), np.array([False, False, True, False]))
    # Three removals explain 3 of the change, 0.8 is left. Each removal is a third of the path.
    assert forecast.doubt == pytest.approx(0.8)
    assert forecast.bend == pytest.approx([0.8 / 6, 0.8 / 2, 0.8 * 2 / 3, 0.8 * 5 / 6])
    assert forecast.effects(np.inf, {}) == pytest.approx(forecast.bend + np.arange(4) + 0.5)


def test_slopes_that_are_not_finite_are_told() -> None:
    assert Slopes(np.zeros(2), np.zeros((2, 1))).finite
    assert not Slopes(np.array([0.0, np.nan]), np.zeros((2, 1))).finite
    assert not Slopes(np.zeros(2), np.array([[0.0], [np.inf]])).finite
