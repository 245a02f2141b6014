"""Which circuits of a ranking are judged."""

from __future__ import annotations

from typing import Any

import pytest

import pahq_plugin as pahq
from pahq_plugin.compare import task
from tests.helpers.small import loader, small_model


def test_rankings_are_cut_with_ties() -> None:
    effects = [-5, 3, 3, -3, 1, 0, 0]
    ranking: list[dict[str, Any]] = [
        {"edge": f"e{i}", "seq_idx": None, "effect": effect} for i, effect in enumerate(effects)
    ]
    sizes = [len(task.cut(ranking, size)) for size in range(8)]
    assert sizes == [0, 1, 4, 4, 4, 5, 5, 5], "an edge without score is in no circuit"
    assert task.cut(ranking, 1) == [("e0", None)]


@pytest.mark.parametrize("size", [0, 1, 7, 30, 46])
def test_cuts_are_circuits_of_that_many_edges(size: int) -> None:
    model, prompts = small_model(n_heads=2), loader()
    found = pahq.discover(model, prompts, method="Act Mag", progress=False)
    chosen = pahq.discover(model, prompts, method="Act Mag", n_edges=size, progress=False).circuit
    cut = task.cut(found.record()["decisions"], size)
    assert {name for name, _ in cut} == {edge.name for edge in chosen}
