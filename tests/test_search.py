"""The sweep on engines whose effects are given: its decisions are the sequential algorithm's."""

from __future__ import annotations

import math
import random

import pytest
from auto_circuit.types import AblationType, Edge
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_plugin.discovery.guard import AUDIT_EVERY, SAMPLE, GuardBand, fixed_band, make_guard
from pahq_plugin.discovery.screening import RECENT
from pahq_plugin.engines.question import Question
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import kl_div
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Stats
from tests.helpers.fake_engine import (
    FakeEngine,
    additive_loss,
    edges,
    random_loss,
    relative_noise,
    sequential,
    swept,
)
from tests.helpers.small import loader, small_model

SEEDS = st.integers(0, 2**32)


def outcome(decisions: list[Decision]) -> list[tuple[Edge, bool]]:
    return [(decision.edge, decision.kept) for decision in decisions]


def some(seed: int):
    """Answers any number of the candidates that are offered."""
    draw = random.Random(seed)
    return lambda offered: draw.randint(1, offered)


# Exact engines ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 24), threshold=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_decisions_are_those_of_the_sequential_loop(seed: int, count: int, threshold: float) -> None:
    order = edges(count)
    loss = random_loss(order, seed)
    expected = sequential(order, loss, threshold)
    for lookahead in {1, 2, 5, count, 2 * count}:
        for answers in (None, some(seed)):
            engine = FakeEngine(loss, lookahead=lookahead, answers=answers)
            sweep = swept(engine, order, threshold)
            assert outcome(sweep.run()) == expected
            assert engine.removed == {edge for edge, kept in expected if not kept}
            assert all(decision.exact for decision in sweep.decisions)
            assert sweep.re_evaluations == 0


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, lookahead=st.integers(1, 12))
def test_recorded_effects_are_those_of_the_moment(seed: int, lookahead: int) -> None:
    order = edges(12)
    loss = random_loss(order, seed)
    removed: frozenset[Edge] = frozenset()
    for decision in swept(FakeEngine(loss, lookahead=lookahead), order, 0.5).run():
        assert decision.effect == loss(removed | {decision.edge}) - loss(removed)
        removed = removed if decision.kept else removed | {decision.edge}


def test_an_effect_at_the_threshold_is_kept() -> None:
    order = edges(3)
    effects = dict(zip(order, (0.5, 0.5 - 2**-20, 0.5 + 2**-20), strict=True))
    sweep = swept(FakeEngine(additive_loss(effects)), order, 0.5)
    assert [decision.kept for decision in sweep.run()] == [True, False, True]


def test_negative_effects_are_removed() -> None:
    order = edges(2)
    sweep = swept(FakeEngine(additive_loss({order[0]: -9.0, order[1]: 9.0})), order, 0.5)
    assert [decision.kept for decision in sweep.run()] == [False, True]


def test_the_order_given_is_the_order_taken() -> None:
    order = edges(9)
    random.Random(3).shuffle(order)
    sweep = swept(FakeEngine(random_loss(order, 1), lookahead=4), order, 0.5)
    assert [decision.edge for decision in sweep.run()] == order


def test_looking_ahead_saves_calls_where_all_edges_go() -> None:
    order, calls = edges(20), []
    loss = additive_loss(dict.fromkeys(order, 0.0))
    engine = FakeEngine(loss, lookahead=8, answers=lambda n: calls.append(n) or n)
    swept(engine, order, 0.5).run()
    assert calls == [8, 8, 4] and engine.evaluations == 20


def test_a_wrong_prediction_is_not_made_twice() -> None:
    """Edge 1 stays: the first call ends there, the second knows of edge 3 from the first."""
    order = edges(6)
    loss = additive_loss({edge: float(i in (1, 3)) for i, edge in enumerate(order)})
    calls: list[int] = []
    engine = FakeEngine(loss, lookahead=6, answers=lambda n: calls.append(n) or n)
    swept(engine, order, 0.5).run()
    assert calls == [6, 4]


def test_nothing_to_decide_is_no_error() -> None:
    assert swept(FakeEngine(lambda removed: 0.0), [], 0.5).run() == []


def test_progress_counts_up_to_all_edges() -> None:
    order = edges(10)
    told: list[tuple[int, int]] = []
    engine = FakeEngine(random_loss(order, 5), lookahead=3)
    sweep = swept(engine, order, 0.5, progress=lambda *numbers: told.append(numbers))
    sweep.run()
    kept = sum(decision.kept for decision in sweep.decisions)
    assert told == sorted(told) and told[-1] == (10, kept)


def test_the_host_engine_runs_the_state_before_once_for_all_kept_edges() -> None:
    """One forward per edge, and one per block from which forwards start and per fresh start; more than
    half are kept."""
    model, order = small_model(), canonical_edges(small_model())
    batches = loader()
    prompts = collect_batches(model, batches, 1)
    prepared = prepare(model, batches, prompts, AblationType.RESAMPLE)
    with borrowed(model):
        engine = HostEngine(
            Question(model, loader, [], AblationType.RESAMPLE, ("kl_div", kl_div)), prepared
        )
        decisions = swept(engine, order, 1e-3).run()
    assert sum(decision.kept for decision in decisions) > len(order) / 2
    starts = model.cfg.n_layers + len(order) // HostEngine.snapshot_every
    assert engine.evaluations <= len(order) + 1 + starts


# Screening engines --------------------------------------------------------------------------------


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


def test_a_guard_of_zero_trusts_every_effect() -> None:
    order = edges(8)
    engine = FakeEngine(random_loss(order, 2), lookahead=3, noise=relative_noise(2, 0.9))
    guard = make_guard(engine, order, 0.5, 0, seed=0)
    assert guard is None
    decisions = swept(engine, order, 0.5, guard).run()
    assert not engine.asked_exactly and not any(decision.exact for decision in decisions)


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


# Making a guard -----------------------------------------------------------------------------------


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
