"""Groups of prompts by the position at which they begin to change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahq_plugin.engines.incremental.prompt_groups import prompt_groups


def groups(firsts: list[int], length: int = 10, most: int = 4) -> list[tuple[list[int], int]]:
    found = prompt_groups(np.array(firsts, dtype=np.int64), length, most)
    return [(group.prompts.tolist(), group.first) for group in found]


@pytest.mark.parametrize(
    ("firsts", "expected"),
    [
        ([3, 1, 3], [([1], 1), ([0, 2], 3)]),
        ([0, 0], [([0, 1], 0)]),
        ([10, 4], [([1], 4)]),
        ([10], []),
        ([], []),
    ],
)
def test_equal_beginnings_stand_together(
    firsts: list[int], expected: list[tuple[list[int], int]]
) -> None:
    assert groups(firsts) == expected


def test_neighbours_that_cost_fewest_tokens_are_merged() -> None:
    """Of 0, 5, 6, 9 the prompts at 6 join those at 5: one token each, where 9 would add three."""
    assert groups([0, 5, 6, 6, 9], most=3) == [([0], 0), ([1, 2, 3], 5), ([4], 9)]
    assert groups([0, 5, 6, 6, 9], most=1) == [([0, 1, 2, 3, 4], 0)]


@given(st.lists(st.integers(0, 12)), st.integers(1, 5))
def test_every_changing_prompt_is_in_one_group_that_begins_early_enough(
    firsts: list[int], most: int
) -> None:
    found = groups(firsts, 12, most)
    assert len(found) <= most
    assert sorted(i for prompts, _ in found for i in prompts) == [
        i for i, first in enumerate(firsts) if first < 12
    ]
    assert all(begin <= firsts[i] for prompts, begin in found for i in prompts)
