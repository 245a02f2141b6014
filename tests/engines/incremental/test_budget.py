"""Bytes for the parts of a search."""

from __future__ import annotations

import torch

from pahq_plugin.engines.incremental.budget import Budget, budget_for, budget_within

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
