"""Circuits of a wanted size: the threshold that a search needs for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_plugin import Discovery, discover
from pahq_plugin.discovery import search
from pahq_plugin.discovery.sized import SEARCHES, sized
from pahq_plugin.results.decision import Decision
from tests.helpers.fake_engine import additive_loss, edges, random_loss, sequential
from tests.helpers.searches import small_edges
from tests.helpers.small import loader

Effects = Callable[[float], list[Decision]]


def searches(seed: int, count: int, interaction: float) -> Effects:
    """The sequential loop on a random loss; effects depend on what was removed before."""
    order = edges(count)
    draw = random.Random(seed)
    own = {edge: draw.choice([-1, 1, 1]) * 10 ** draw.uniform(-4, 1) for edge in order}
    alone, mixed = additive_loss(own), random_loss(order, seed)

    def loss(removed: frozenset) -> float:
        return alone(removed) + interaction * mixed(removed)

    def at(threshold: float) -> list[Decision]:
        decisions, removed = [], frozenset()
        for edge, kept in sequential(order, loss, threshold):
            effect = loss(removed | {edge}) - loss(removed)
            assert kept == (effect >= threshold)
            decisions.append(Decision(edge, effect, kept, exact=True))
            removed = removed if kept else removed | {edge}
        return decisions

    return at


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wanted=st.integers(0, 40),
    interaction=st.sampled_from([0.0, 0.01, 0.5]),
    start=st.sampled_from([1e-3, 0.01, 1.0, 100.0]),
)
def test_so_many_edges_are_kept(seed: int, wanted: int, interaction: float, start: float) -> None:
    at = searches(seed, 40, interaction)
    found = sized(at, wanted, start)
    most = max(sum(decision.kept for decision in at(threshold)) for threshold in found.searched)
    kept = [decision for decision in found.decisions if decision.kept]
    assert len(kept) == min(wanted, most)
    assert all(d.kept == (d.effect >= found.threshold) for d in found.decisions)
    assert {d.edge for d in kept} <= {d.edge for d in at(found.chosen) if d.kept}
    enough = [t for t in found.searched if sum(decision.kept for decision in at(t)) >= wanted]
    assert found.chosen == (max(enough) if enough else min(found.searched)), "cut as little as can be"
    if len(kept) < wanted:
        assert min(found.searched) <= 1e-12, "no threshold is left to try"
    if interaction == 0 and wanted == len(kept) and all(d.effect > 1e-3 for d in kept):
        assert len(found.searched) <= SEARCHES + 2
        best = sorted((d.effect for d in at(start)), reverse=True)[:wanted]
        assert sorted((d.effect for d in kept), reverse=True) == pytest.approx(best)


def test_edges_that_tie_with_the_last_one_are_kept() -> None:
    order = edges(6)
    effects = [3.0, 2.0, 2.0, 2.0, 1.0, 0.0]

    def at(threshold: float) -> list[Decision]:
        pairs = zip(order, effects, strict=True)
        return [Decision(edge, effect, effect >= threshold, exact=True) for edge, effect in pairs]

    assert [d.kept for d in sized(at, 2, 0.5).decisions] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("method", ["acdc", "pahq", "pahq-paper"])
def test_a_search_for_a_size(method: str, tmp_path: Path) -> None:
    model = small_edges()
    result = discover(model, loader(), method=method, n_edges=5, progress=False)
    assert len(result.circuit) == 5 == result.settings["n_edges"]
    assert result.settings["threshold"] == min(d.effect for d in result.decisions if d.kept)
    assert result.settings["searched"][0] == 0.01
    result.save(tmp_path)
    again = Discovery.load(tmp_path, model)
    assert again.decisions == result.decisions and again.settings == result.settings


def test_it_goes_on_from_checkpoints_of_all_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = small_edges(), tmp_path / "search"
    asked = {"method": "acdc", "n_edges": 5, "progress": False}
    whole = discover(model, loader(), **asked)
    assert len(whole.settings["searched"]) > 1
    swept, calls = search.swept, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(options["start"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return swept(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "swept", interrupted)
    with pytest.raises(KeyboardInterrupt):
        discover(model, loader(), checkpoint=file, **asked)
    again = discover(model, loader(), checkpoint=file, **asked)
    assert calls[2] is not None, "the first search is not run again"
    assert again.decisions == whole.decisions and again.settings == whole.settings
