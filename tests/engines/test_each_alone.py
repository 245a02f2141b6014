"""Effects of edges alone are the same on every engine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from pahq_plugin.engines.choose import make_engine
from pahq_plugin.engines.each_alone import alone, in_turn, kept
from pahq_plugin.engines.incremental.alone import AloneEngine
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.host import Edge
from pahq_plugin.host.lending import borrowed
from pahq_plugin.precision.config import FULL_PRECISION
from tests.helpers.alone import question
from tests.helpers.small import loader, small_model


def all_effects(engine: Engine, edges: list[Edge]) -> dict[str, float]:
    order, found = in_turn(engine, edges), []
    while len(found) < len(order):
        found += alone(engine, order[len(found) :])
    return {edge.name: effect for edge, effect in zip(order, found, strict=True)}


def test_every_engine_finds_the_same() -> None:
    found = []
    for kind in (AloneEngine, IncrementalEngine, HostEngine):
        asked = question(small_model("rotary_gated"), loader())
        with ExitStack() as stack:
            stack.enter_context(borrowed(asked.model))
            if kind is HostEngine:
                asked = replace(asked, engine="host")
            kind_wanted = AloneEngine if kind is HostEngine else kind
            engine = make_engine(asked, FULL_PRECISION, stack, kind_wanted)
            assert type(engine) is kind
            found.append(all_effects(engine, list(asked.edges)))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-4, abs=1e-6)
    assert sum(abs(effect) > 1e-4 for effect in found[0].values()) > len(found[0]) / 2


def test_candidates_that_are_kept_are_each_alone() -> None:
    asked = question(small_model(), loader())
    edges = list(asked.edges)[:6]
    with borrowed(asked.model):
        engine = AloneEngine(asked)
        effects = kept(engine, edges, exact=True)
        assert 1 <= len(effects) <= 6
        expected = all_effects(engine, edges)
    assert effects == pytest.approx([expected[edge.name] for edge in edges[: len(effects)]], abs=1e-6)
