"""Searches: which decisions are exact, and what counts as their cost."""

from __future__ import annotations

import math

import pytest

import pahq_plugin as pahq
from pahq_plugin.discovery import search as discovery
from tests.helpers.families import family_loader, family_model
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader


def test_re_evaluated_edges_are_exact() -> None:
    model, prompts = small_edges(), loader()
    int8 = pahq.PrecisionConfig(low="int8", mlp="int8")
    result = discover(
        model, prompts, threshold=0.3, precision=int8
    )  # where most are kept none is screened
    exact = sum(decision.exact for decision in result.decisions)
    assert 0 < exact < len(result.decisions)
    all_exact = pahq.PrecisionConfig(low="int8", guard=math.inf)
    everything = discover(model, prompts, threshold=0.003, precision=all_exact)
    assert all(decision.exact for decision in everything.decisions)
    assert (everything.stats.re_evaluations, everything.stats.guard) == (0, {})  # nothing was screened


def test_only_the_search_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the plain forwards that its time is held against, which need every weight, too."""
    loader, settings = family_loader(), {"method": "acdc", "progress": False, "max_memory": "24.5MB"}
    found = pahq.discover(pahq.adapt(family_model("llama-3")), loader, **settings)
    monkeypatch.setattr(discovery, "forward_seconds", lambda *_: 1.0)
    without = pahq.discover(pahq.adapt(family_model("llama-3")), loader, **settings)
    assert found.stats.memory["moved"] == without.stats.memory["moved"] > 0
    assert found.stats.forward_equivalents > 0
