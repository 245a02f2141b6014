"""Time, evaluations and memory of a search."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.discovery.cost import held_to
from pahq_plugin.engines.placement.plan import plan_memory
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.results.result import Stats
from tests.helpers.families import family_loader, family_model
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader

INT8 = pahq.PrecisionConfig(low="int8", mlp="int8")


@pytest.mark.parametrize("engine", ["host", "incremental"])
def test_the_stats_of_a_search(engine: str) -> None:
    model, prompts = small_edges(), loader()
    exact, mixed = (
        discover(
            model, prompts, method="pahq", threshold=0.003, engine=engine, precision=precision
        ).stats
        for precision in (pahq.PrecisionConfig(low="fp32", mlp="fp32"), INT8)
    )
    assert exact.evaluations > 10 and mixed.evaluations > exact.evaluations
    assert exact.re_evaluations == 0 < mixed.re_evaluations <= len(model.edges)
    assert exact.guard == {} and set(mixed.guard) == {"relative", "floor", "widened", "drift"}
    for stats in (exact, mixed):
        assert stats.seconds > 0 and stats.forward_equivalents > 0
        assert stats.peak_bytes > 2**20
        assert isinstance(stats.evaluations, int) and isinstance(stats.peak_bytes, int)


def test_memory_above_the_budget_is_warned_of() -> None:
    """A budget of one byte, of which 5 % more is allowed; a gigabyte is enough."""
    model, prompts = pahq.adapt(family_model("gpt2")), family_loader()
    plan = plan_memory(model, collect_batches(model, prompts, 1), 10**9, None, 2**20)
    placement: Any = SimpleNamespace(moved=7)
    stats, kept = Stats(), list[torch.Tensor]()
    with held_to(plan, model, placement, torch.device("cpu"), stats):
        placement.moved = 12
    assert stats.memory["moved"] == 5 and stats.memory["max_memory"] == 10**9
    assert stats.memory["weights"] == stats.memory["stayed"] == plan.weights <= stats.memory["peak"]
    small = replace(plan, max_memory=1)
    with (
        pytest.warns(pahq.PahqWarning, match="max_memory"),
        held_to(small, model, placement, torch.device("cpu"), stats),
    ):
        kept.append(torch.ones(2**22))
    assert stats.memory["peak"] >= plan.weights + 0.99 * 2**24  # some pages may have been free
