"""Bytes for the parts of a search."""

from __future__ import annotations

import torch

from pahq_plugin.engines.incremental.budget import (
    Budget,
    budget_for,
    budget_within,
    lone_bytes,
    lone_row_bytes,
)
from tests.helpers.alone import engine
from tests.helpers.small import loader, small_model

CPU = torch.device("cpu")


def test_what_a_search_takes_by_hand() -> None:
    """Rows of either kind, work, memos of 1 + 1/4 + 1/2, and half of one for maps."""
    assert Budget(rows=10, screened_rows=12, work=5, cached=3, memo=16).together == 12 + 5 + 28 + 8
    assert Budget(rows=20, screened_rows=12, work=5, cached=3, memo=0).together == 25


def test_budgets_within_less_scale_every_part() -> None:
    usual = budget_for(CPU)
    assert budget_within(CPU, 10**12) == usual
    half = budget_within(CPU, usual.together // 2)
    assert half.together <= usual.together // 2
    assert abs(half.rows - usual.rows / 2) < 2


def test_a_lone_row_by_hand() -> None:
    """Two layers of four heads of width 8, d_model 32, six positions, of which the last is read."""
    made = engine(small_model(), loader())
    graph, cfg = made._graph, made._model.cfg
    output = lone_row_bytes(4, graph, cfg, prompts=3)
    assert output == 4 * 32 * 3 * 4  # four streams at one position
    onward = 3 * 5 * 32 + 3 * 32 + 2 * 5 * 32 + 4 * 6 * 32 + 3 * 4 * 6  # attention of block 1
    assert lone_row_bytes(1, graph, cfg, prompts=3) == onward * 3 * 4
    shared, own = 5 * (3 * 32 + 3 * 32) // 12, 6 * 6 * 8 + 3 * 6 + 32
    assert lone_row_bytes(2, graph, cfg, prompts=1) == (shared + own) * 4
    assert lone_row_bytes(0, graph, cfg, prompts=1) == onward * 4


def test_passes_of_the_full_model_are_larger_on_a_cpu() -> None:
    assert lone_bytes(CPU) > budget_for(CPU).rows
    assert lone_bytes(torch.device("cuda")) == budget_for(torch.device("cuda")).rows
    assert lone_bytes(torch.device("meta")) == lone_bytes(CPU)
