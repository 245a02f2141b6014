"""The sweep on engines that screen: the guard band, and going back when it was too narrow."""

from __future__ import annotations

import math
import random

import pytest
from auto_circuit.types import Edge
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_plugin.discovery.guard import AUDIT_EVERY, GuardBand, fixed_band
from pahq_plugin.discovery.screening import RECENT
from pahq_plugin.results.result import Stats
from tests.helpers.fake_engine import (
    FakeEngine,
    additive_loss,
    edges,
    outcome,
    random_loss,
    relative_noise,
    sequential,
    some,
    swept,
)

SEEDS = st.integers(0, 2**32)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 12), size=st.floats(0.001, 0.12))
def test_noise_within_the_band_changes_no_decision(seed: int, lookahead: int, size: float) -> None:
    """Off by at most 12 %, where the band is 30 %: also never more than half of the band."""
    order = edges(16)
    loss = random_loss(order, seed)
    engine = FakeEngine(loss, lookahead=lookahead, answers=some(seed), noise=relative_noise(seed, size))
    guard = GuardBand(0.5, relative=0.3, floor=1e-6)
    sweep = swept(engine, order, 0.5, guard)
    assert outcome(sweep.run()) == sequential(order, loss, 0.5)
    assert guard.widened == 0 and not engine.restored
    exact = [decision for decision in sweep.decisions if decision.exact]
    assert len(exact) <= len(engine.asked_exactly) >= sweep.re_evaluations
    assert all(decision.exact for decision in sweep.decisions if guard.doubts(decision.effect))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 8))
def test_without_a_guard_decisions_are_the_noisy_ones(seed: int, lookahead: int) -> None:
    order, noise = edges(12), relative_noise(seed, 0.8)
    effects = {edge: i / 12 for i, edge in enumerate(order)}
    engine = FakeEngine(additive_loss(effects), lookahead=lookahead, noise=noise)
    sweep = swept(engine, order, 0.5)
    kept = [decision.kept for decision in sweep.run()]
    effect = {d.edge: d.effect for d in sweep.decisions}
    assert kept == [effect[edge] >= 0.5 for edge in order]
    assert effect == pytest.approx({edge: noise(edge, effects[edge]) for edge in order})
    assert not any(decision.exact for decision in sweep.decisions)
    assert sweep.re_evaluations == 0 and not engine.asked_exactly


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 8), size=st.floats(0, 50))
def test_an_infinite_band_makes_every_decision_exact(seed: int, lookahead: int, size: float) -> None:
    order = edges(10)
    loss = random_loss(order, seed)
    engine = FakeEngine(loss, lookahead=lookahead, noise=relative_noise(seed, size))
    sweep = swept(engine, order, 0.5, fixed_band(0.5, math.inf))
    assert outcome(sweep.run()) == sequential(order, loss, 0.5)
    assert all(decision.exact for decision in sweep.decisions)
    assert len(engine.asked_exactly) >= len(order)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 8), size=st.floats(0, 50))
def test_no_edge_is_kept_on_a_screened_effect(seed: int, lookahead: int, size: float) -> None:
    """Far outside the band, too: an attention pattern that tips over makes 70 of 0.04."""
    order = edges(14)
    loss = random_loss(order, seed)
    engine = FakeEngine(loss, lookahead=lookahead, noise=relative_noise(seed, size))
    for decision in swept(engine, order, 0.5, GuardBand(0.5, 0.1, 1e-4), seed=seed).run():
        assert decision.exact or not decision.kept


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 8))
def test_one_effect_that_is_far_off_changes_no_decision(seed: int, lookahead: int) -> None:
    """Screening puts any one edge far outside the band; the loss after a removal shows it."""
    order = edges(14)
    loss, victim = random_loss(order, seed), random.Random(seed).choice(order)
    wrong = random.Random(-seed).choice([-3.0, 0.01, 5.0])

    def noise(edge: Edge, effect: float) -> float:
        return wrong if edge == victim else effect

    engine = FakeEngine(loss, lookahead=lookahead, noise=noise, knows_loss=True)
    taken = swept(engine, order, 0.5, GuardBand(0.5, 0.1, 1e-4)).run()
    assert outcome(taken) == sequential(order, loss, 0.5)


def test_an_engine_that_does_not_screen_needs_no_guard() -> None:
    order = edges(8)
    engine = FakeEngine(random_loss(order, 2))
    sweep = swept(engine, order, 0.5, fixed_band(0.5, math.inf))
    assert all(decision.exact for decision in sweep.run())
    assert sweep.re_evaluations == 0 and not engine.asked_exactly


def test_an_effect_after_a_wrong_prediction_does_not_widen_the_band() -> None:
    """Edge 0, in doubt, is predicted to go and kept. Edge 1, measured without it, is off by 1.8."""
    order = edges(2)

    def loss(removed: frozenset[Edge]) -> float:
        both = len(removed) == 2
        return 1.05 * (order[0] in removed) + 0.9 * (order[1] in removed) + 1.8 * both

    screened = dict(zip(order, (0.95, 0.9), strict=True))
    engine = FakeEngine(loss, lookahead=2, noise=lambda edge, _: screened[edge])
    guard = GuardBand(1.0, relative=0.3, floor=0.0)
    assert [decision.kept for decision in swept(engine, order, 1.0, guard).run()] == [True, False]
    assert guard.widened == 0 and not engine.restored


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_a_widened_band_takes_back_what_it_doubts(lookahead: int) -> None:
    """Edge 0 is screened at 0.7 and really 1.5: wrong, and outside a band of 30 % around 1.
    Edge 1, screened at 0.95 and really 1.6, is inside. Its difference widens the band, edge 0 is
    in doubt, and the search starts again; edge 0, off by more still, widens the band once more."""
    order = edges(3)
    exact = dict(zip(order, (1.5, 1.6, 0.0), strict=True))
    screened = dict(zip(order, (0.7, 0.95, 0.0), strict=True))
    engine = FakeEngine(additive_loss(exact), lookahead=lookahead, noise=lambda edge, _: screened[edge])
    guard = GuardBand(1.0, relative=0.3, floor=0.0)
    sweep = swept(engine, order, 1.0, guard)
    assert [decision.kept for decision in sweep.run()] == [True, True, False]
    assert engine.restored == [set()] and guard.widened == 2
    assert engine.asked_exactly[:3] == [order[1], order[0], order[1]]
    assert sweep.re_evaluations == len(engine.asked_exactly)
    assert engine.removed == {order[2]}


def test_a_rewind_keeps_what_the_wider_band_still_trusts() -> None:
    """Edge 0 has no effect at all: only the decisions from edge 1 on are taken back."""
    order = edges(3)
    exact = dict(zip(order, (-9.0, 1.5, 1.6), strict=True))
    screened = dict(zip(order, (-9.0, 0.7, 0.95), strict=True))
    engine = FakeEngine(additive_loss(exact), noise=lambda edge, _: screened[edge])
    sweep = swept(engine, order, 1.0, GuardBand(1.0, relative=0.3, floor=0.0))
    assert [decision.kept for decision in sweep.run()] == [False, True, True]
    assert engine.restored == [{order[0]}]
    assert order[0] not in engine.asked_exactly


def test_an_error_of_one_row_that_cancels_in_the_sum_is_found_by_the_drift() -> None:
    """Row 1 is off by 0.5: edge 0 seems 0.5 more, edge 1, really 1.2, 0.5 less, outside the band of
    30 %. The sum is right but for the last row, off by 0.1 with 1.5 gone: the band and 4 * 0.1 / 1.5
    of the 1.2 gone make edge 1 doubtful."""
    order = edges(3)
    exact = dict(zip(order, (0.0, 1.2, 0.2), strict=True))
    screened = dict(zip(order, (0.5, 0.7, 0.3), strict=True))
    engine = FakeEngine(
        additive_loss(exact), lookahead=3, noise=lambda edge, _: screened[edge], knows_loss=True
    )
    sweep = swept(engine, order, 1.0, GuardBand(1.0, relative=0.3, floor=0.0))
    assert [decision.kept for decision in sweep.run()] == [False, True, False]
    assert engine.asked_exactly[0] == order[1]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 8), size=st.floats(0, 3))
def test_the_sweep_ends_and_exact_decisions_are_right_whatever_the_noise(
    seed: int, lookahead: int, size: float
) -> None:
    order = edges(14)
    effects = {edge: random.Random(f"{seed} {edge.name}").uniform(-1, 2) for edge in order}
    engine = FakeEngine(additive_loss(effects), lookahead=lookahead, noise=relative_noise(seed, size))
    sweep = swept(engine, order, 0.5, GuardBand(0.5, 0.1, 1e-4), seed=seed)
    assert [decision.edge for decision in sweep.run()] == order
    for decision in sweep.decisions:
        if decision.exact:
            assert decision.kept == (effects[decision.edge] >= 0.5 - 1e-9) or math.isclose(
                effects[decision.edge], 0.5, abs_tol=1e-9
            )
    assert engine.removed == {d.edge for d in sweep.decisions if not d.kept}


def test_a_seeded_sample_is_decided_exactly_to_watch_the_band() -> None:
    order = edges(4 * AUDIT_EVERY)
    loss = additive_loss(dict.fromkeys(order, 0.0))

    def watched(seed: int) -> set[Edge]:
        engine = FakeEngine(loss, lookahead=16, noise=lambda edge, effect: effect)
        sweep = swept(engine, order, 0.5, GuardBand(0.5, 0.3, 1e-6), seed=seed)
        return {decision.edge for decision in sweep.run() if decision.exact}

    assert len(watched(0)) == 4
    assert watched(0) == watched(0) != watched(1)


@pytest.mark.parametrize("lookahead", [1, 5])
def test_where_most_edges_are_decided_again_they_are_not_screened_first(lookahead: int) -> None:
    order = edges(4 * RECENT)
    effects = {edge: float(i < 2 * RECENT) for i, edge in enumerate(order)}
    engine = FakeEngine(additive_loss(effects), lookahead=lookahead, noise=lambda edge, effect: effect)
    sweep = swept(engine, order, 0.5, GuardBand(0.5, 0.3, 1e-6))
    kept = [decision for decision in sweep.run() if decision.kept]
    assert [decision.edge for decision in kept] == order[: 2 * RECENT]
    assert sweep.re_evaluations < RECENT / 2
    assert not any(decision.exact for decision in sweep.decisions[-RECENT:])


def test_what_a_sweep_cost_is_recorded() -> None:
    order = edges(6)
    engine = FakeEngine(random_loss(order, 4), noise=relative_noise(4, 0.05))
    sweep = swept(engine, order, 0.5, fixed_band(0.5, math.inf))
    sweep.run()
    stats = Stats()
    sweep.record(stats)
    assert stats.evaluations == engine.evaluations == 10  # the last two are not screened any more
    assert stats.re_evaluations == 4
    assert stats.guard["relative"] == math.inf and stats.guard["widened"] == 0
