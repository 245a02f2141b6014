"""The sweep on exact engines whose effects are given: its decisions are the sequential algorithm's."""

from __future__ import annotations

import random

from auto_circuit.types import Edge
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.fake_engine import (
    FakeEngine,
    additive_loss,
    edges,
    outcome,
    random_loss,
    sequential,
    some,
    swept,
)

SEEDS = st.integers(0, 2**32)


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
