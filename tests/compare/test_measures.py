"""Measures of circuits against numbers worked out on paper, slow oracles and the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.metrics.official_circuits.measure_roc import measure_task_roc
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import auc

from pahq_plugin.compare import measures
from pahq_plugin.compare.measures import (
    bootstrap,
    cmd,
    completeness,
    cpr,
    curve,
    faithfulness,
    jaccard,
    mean_pairwise_jaccard,
    pessimistic_auc,
    rates,
    roc_auc,
    roc_points,
)
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.small import small_model

SHARES = st.floats(0, 1).map(lambda x: round(x, 3))
SCORES = st.integers(-3, 3).map(float)  # few values, so that many tie


def mean_of(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The statistic that is the mean itself."""
    return means[:, 0]


def column(*values: float) -> NDArray[np.float64]:
    """One value of each prompt."""
    return np.array(values)[:, None]


def assert_points(ours: list[measures.Point], expected: list[measures.Point]) -> None:
    """The same points in the same order."""
    assert len(ours) == len(expected)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


# Rates and ROC ------------------------------------------------------------------------------------


def test_rates_by_hand() -> None:
    """Of ten edges four are true; the circuit holds three of these and one of the six others."""
    circuit = {"a", "b", "c", "x"}
    assert rates(circuit, {"a", "b", "c", "d"}, 10) == (1 / 6, 3 / 4)
    assert rates(set(), {"a"}, 10) == (0, 0)
    assert rates(["a", "a", "x"], ["a", "a"], 3) == (1 / 2, 1)
    assert rates(set("abcd"), {"a"}, 4) == (1, 1)


def test_roc_by_hand() -> None:
    """Scores -4 (true), 3 (false), 2 (true and false), 0 (false): signs do not count."""
    scores, truth = [-4, 3, 2, -2, 0], [True, False, True, False, False]
    third = 1 / 3
    expected = [(0, 0), (0, 0.5), (third, 0.5), (2 * third, 1), (1, 1)]
    assert_points(roc_points(scores, truth), expected)
    # Pairs true, false: -4 beats all three; 2 loses to 3, ties with -2, beats 0.
    assert roc_auc(scores, truth) == pytest.approx((3 + 0 + 0.5 + 1) / 6)


def test_every_cut_off_is_a_point_even_on_a_straight_line() -> None:
    """Four pairs of ties, one true and one false edge each: steps of a quarter."""
    points = roc_points([4, 4, 3, 3, 2, 2, 1, 1], [True, False] * 4)
    assert points == [(0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1, 1)]
    assert pessimistic_auc(points) == 0.25 * (0.75 + 0.5 + 0.25)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=12))
def test_roc_against_pairs_and_cut_offs(edges: list[tuple[float, bool]]) -> None:
    scores, truth = [s for s, _ in edges], [t for _, t in edges]
    if len(set(truth)) < 2:
        return
    right = [abs(s) for s, t in edges if t]
    wrong = [abs(s) for s, t in edges if not t]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(right, wrong)]
    assert roc_auc(scores, truth) == pytest.approx(np.mean(wins))
    cuts = {
        (sum(b >= cut for b in wrong) / len(wrong), sum(a >= cut for a in right) / len(right))
        for cut in [math.inf, *right, *wrong]
    }
    assert_points(roc_points(scores, truth), sorted(cuts))
    false, true = zip(*roc_points(scores, truth), strict=True)
    assert auc(false, true) == pytest.approx(roc_auc(scores, truth))


@pytest.mark.parametrize("seed", range(3))
def test_roc_is_the_hosts(seed: int) -> None:
    """Random prune scores with ties and both signs, on the edges of a small model."""
    model = small_model(n_heads=2)
    generator = torch.Generator().manual_seed(seed)
    scores = model.new_prune_scores()
    for mask in scores.values():
        mask.copy_(torch.randint(-6, 7, mask.shape, generator=generator))
    edges = canonical_edges(model)
    official = {e for e in edges if torch.rand((), generator=generator) < 0.3}
    theirs = measure_task_roc(model, official, scores)
    values, truth = [float(e.prune_score(scores)) for e in edges], [e in official for e in edges]
    ours = roc_points(values, truth)
    assert_points(ours, sorted(set(theirs)))
    false, true = zip(*theirs, strict=True)
    assert roc_auc(values, truth) == pytest.approx(float(auc(false, true)))


def test_pessimistic_auc_by_hand() -> None:
    """Steps of 0.5 at 0.2 and of 0.4 at 0.5: 0.8 x 0.5 + 0.5 x 0.4 = 0.6."""
    points = [(0.5, 0.9), (0.2, 0.5)]
    assert pessimistic_auc(points) == pytest.approx(0.6)
    assert pessimistic_auc([*points, (0, 0), (1, 1)]) == pytest.approx(0.6)
    worse = [(0.3, 0.4), (0.2, 0.3), (0.7, 0.9)]  # dominated: more false edges, no more true ones
    assert pessimistic_auc([*worse, *points]) == pytest.approx(0.6)
    assert pessimistic_auc([]) == pessimistic_auc([(1, 1)]) == pessimistic_auc([(0, 0)]) == 0
    assert pessimistic_auc([(0, 1)]) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SHARES, SHARES), max_size=8))
def test_pessimistic_auc_against_integration(points: list[tuple[float, float]]) -> None:
    """The midpoint rule is exact where every jump lies on the grid."""
    x = (np.arange(1000) + 0.5) / 1000
    best = np.max([np.where(false <= x, true, 0) for false, true in [*points, (0, 0)]], axis=0)
    assert pessimistic_auc(points) == pytest.approx(best.mean(), abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=12))
def test_the_pessimistic_area_is_never_larger(edges: list[tuple[float, bool]]) -> None:
    """... than that of the same points joined by lines, and equal where nothing ties."""
    truth = [t for _, t in edges]
    if len(set(truth)) < 2:
        return
    scores = [s for s, _ in edges]
    assert pessimistic_auc(roc_points(scores, truth)) <= roc_auc(scores, truth) + 1e-12
    distinct = [1 + 0.1 * i for i in range(len(edges))]
    assert pessimistic_auc(roc_points(distinct, truth)) == pytest.approx(roc_auc(distinct, truth))


# Faithfulness and completeness --------------------------------------------------------------------


def test_faithfulness_by_hand() -> None:
    """The whole model scores 5, with every edge patched it scores 1."""
    assert faithfulness([1, 3, 5, 7, -1], 1, 5).tolist() == [0, 0.5, 1, 1.5, -0.5]
    assert completeness([1, 3, 5, 7], 1, 5).tolist() == [1, 0.5, 0, -0.5]
    assert float(faithfulness(-2, -4, 0)) == 0.5
    assert float(faithfulness(3, 5, 1)) == 0.5, "patching may help: the span is negative"


def test_a_behaviour_that_does_not_change_has_no_faithfulness() -> None:
    values = faithfulness([[1.0, 2.0], [1.0, 2.0]], [[3.0], [0.0]], [[3.0], [1.0]])
    assert np.isnan(values[0]).all() and values[1].tolist() == [1, 2]
    assert math.isnan(completeness(1, 2, 2))


# Curves -------------------------------------------------------------------------------------------


def test_a_curve_goes_from_nothing_to_the_whole() -> None:
    """Sizes in any order; equal sizes are their mean; what is said of 0 and all edges is known."""
    x, y = curve([4, 1, 4, 0, 10], [0.6, 0.2, 1.0, 0.7, 0.3], 10)
    assert x.tolist() == [0, 0.1, 0.4, 1]
    assert y == pytest.approx([0, 0.2, 0.8, 1])


def test_the_curve_of_no_circuits_is_the_diagonal() -> None:
    x, y = curve([], np.empty((2, 0)), 10)
    assert x.tolist() == [0, 1] and y.tolist() == [[0, 1], [0, 1]]
    assert cpr(x, y).tolist() == cmd(x, y).tolist() == [0.5, 0.5]


def test_areas_by_hand() -> None:
    """Half the edges do as well as all: CPR 0.25 + 0.5; CMD is the triangle of 0.25."""
    x, y = curve([5], [1.0], 10)
    assert (float(cpr(x, y)), float(cmd(x, y))) == (0.75, 0.25)


def test_a_curve_above_one() -> None:
    """CPR pays for more than the whole model's behaviour, CMD does not.

    From 0 to 2 over half the edges, then down to 1: each of the three triangles at 1 has a base of a
    quarter, a quarter and a half, and a height of 1.
    """
    x, y = curve([5], [2.0], 10)
    assert float(cpr(x, y)) == pytest.approx(0.5 + 0.75)
    assert float(cmd(x, y)) == pytest.approx(0.125 + 0.125 + 0.25)


def test_a_curve_below_zero() -> None:
    """Down to -1 over half the edges, then up to 1."""
    x, y = curve([5], [-1.0], 10)
    assert float(cpr(x, y)) == pytest.approx(-0.25)
    assert float(cmd(x, y)) == pytest.approx(0.5 * (1 + 2) / 2 + 0.5)


def test_areas_of_nan_are_nan() -> None:
    x, y = curve([5, 6], [[math.nan, 1.0], [1.0, 1.0]], 10)
    for area in (cpr(x, y), cmd(x, y)):
        assert math.isnan(area[0]) and not math.isnan(area[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.floats(-2, 3), st.floats(-2, 3)), min_size=1, max_size=6)
)
def test_areas_against_integration(circuits: list[tuple[int, float, float]]) -> None:
    """Fine midpoints between the points, each row of a batch alone."""
    sizes, values = [c[0] for c in circuits], np.array([c[1:] for c in circuits]).T
    x, y = curve(sizes, values, 20)
    fine = (np.arange(20000) + 0.5) / 20000
    for row, along in enumerate(np.interp(fine, x, one) for one in y):
        assert float(cpr(x, y)[row]) == pytest.approx(along.mean(), abs=1e-4)
        assert float(cmd(x, y)[row]) == pytest.approx(np.abs(1 - along).mean(), abs=1e-4)
        assert float(cmd(x, y)[row]) >= abs(1 - float(cpr(x, y)[row])) - 1e-12
        alone = curve(sizes, values[row], 20)
        assert float(cmd(*alone)) == pytest.approx(float(cmd(x, y)[row]))


# Agreement of circuits ----------------------------------------------------------------------------


def test_jaccard_by_hand() -> None:
    assert jaccard("abc", "bcd") == 0.5
    assert jaccard([], set()) == 1 and jaccard("a", "") == 0 and jaccard("ab", "ba") == 1


def test_stability_by_hand() -> None:
    """Pairs 1/3, 0 and 0."""
    assert mean_pairwise_jaccard(["ab", "bc", "d"]) == pytest.approx(1 / 9)
    assert mean_pairwise_jaccard(["", "", ""]) == 1
    assert math.isnan(mean_pairwise_jaccard(["a"])) and math.isnan(mean_pairwise_jaccard([]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sets(st.integers(0, 6)), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_stability_against_counting(circuits: list[set[int]], random: Any) -> None:
    pairs = [
        sum(i in a and i in b for i in range(7)) / (sum(i in a or i in b for i in range(7)) or 1)
        if a or b
        else 1.0
        for a, b in combinations(circuits, 2)
    ]
    assert mean_pairwise_jaccard(circuits) == pytest.approx(np.mean(pairs))
    shuffled = list(circuits)
    random.shuffle(shuffled)
    assert mean_pairwise_jaccard(shuffled) == pytest.approx(np.mean(pairs))


# Bootstrap ----------------------------------------------------------------------------------------


def test_an_interval_is_the_same_every_time() -> None:
    groups = [(column(0, 1, 2, 5), mean_of), (column(1, 1, 4), mean_of)]
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
    assert bootstrap(groups) == bootstrap(groups) != bootstrap(groups, seed=1)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr,index]


def test_the_interval_of_one_seed_is_that_of_its_prompts() -> None:
    """0 and 1, two prompts: the mean is 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4."""
    assert bootstrap([(column(0, 1), mean_of)]) == (0, 1)
    low, high = bootstrap([(column(*[0, 1] * 50), mean_of)], resamples=4000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.02)


def test_seeds_are_drawn_too() -> None:
    """Two seeds without any spread: both, one or the other."""
    groups = [(column(0, 0), mean_of), (column(1, 1), mean_of)]
    assert bootstrap(groups) == (0, 1)
    thirty = [(column(float(i % 2)), mean_of) for i in range(30)]
    low, high = bootstrap(thirty, resamples=4000)
    deviation = 1.96 * 0.5 / math.sqrt(30)
    assert (low, high) == pytest.approx((0.5 - deviation, 0.5 + deviation), abs=0.04)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("prompts", [1, 7])
def test_data_without_spread_has_no_width(groups: int, prompts: int) -> None:
    interval = bootstrap([(column(*[0.1] * prompts), mean_of)] * groups, resamples=50)
    assert interval == pytest.approx((0.1, 0.1), abs=1e-12)
    assert interval[0] <= interval[1]


def test_a_statistic_sees_prompts_as_rows() -> None:
    """Values of a prompt are drawn together: one minus the other never varies."""
    values = np.array([[1.0, 0.0], [11.0, 10.0], [5.0, 4.0]])
    interval = bootstrap([(values, lambda means: means[:, 0] - means[:, 1])])
    assert interval == pytest.approx((1, 1))


def test_resamples_without_a_number_are_left_out() -> None:
    def nothing(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full(len(means), math.nan)

    def some(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(means[:, 0] == 0, math.nan, 7.0)

    assert all(math.isnan(end) for end in bootstrap([(column(0, 1), nothing)]))
    assert bootstrap([(column(0, 1), some)]) == (7, 7)


def coverage(draw: Callable[[np.random.Generator], list[Any]], truth: float, trials: int) -> float:
    """How often the interval holds the true value."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(trials):
        low, high = bootstrap([(v, mean_of) for v in draw(rng)], resamples=200)
        held += low <= truth <= high
    return held / trials


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    one_seed = coverage(lambda rng: [rng.normal(3, 2, size=(40, 1))], 3, 150)
    assert 0.88 <= one_seed <= 0.99

    def seeds(rng: np.random.Generator) -> list[Any]:
        return [rng.normal(rng.normal(3, 1), 2, size=(10, 1)) for _ in range(12)]

    assert 0.85 <= coverage(seeds, 3, 60) <= 1
    assert measures.CONFIDENCE == 0.95
