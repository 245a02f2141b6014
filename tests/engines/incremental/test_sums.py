"""An input on the rows of a pass: the present value plus changes at some positions and rows."""

from __future__ import annotations

import random

import pytest
import torch

from pahq_plugin.engines.incremental.sums import Sum, Term

ROWS, BATCH, LENGTH, WIDTH = 5, 2, 4, 3


@pytest.mark.parametrize("seed", range(12))
def test_terms_are_added_where_they_belong(seed: int) -> None:
    """In any number, on some or all rows and positions, with a value for each row or one for all."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    present = torch.randn(BATCH, LENGTH, WIDTH)
    out, expected = torch.full((ROWS, BATCH, LENGTH, WIDTH), torch.nan), present.repeat(ROWS, 1, 1, 1)
    total = Sum(out, present)
    for _ in range(draw.randrange(4)):
        rows = draw.choice([slice(0, ROWS), slice(1, 4), slice(0, 2)])
        where = draw.choice([None, [1, 3]])
        count = draw.choice([1, rows.stop - rows.start])
        value = torch.randn(count, BATCH, LENGTH if where is None else len(where), WIDTH)
        total.add(Term(0, value, None if where is None else torch.tensor(where), rows))
        positions = list(range(LENGTH)) if where is None else where
        expected[rows.start : rows.stop, :, positions] += value
    total.finish()
    torch.testing.assert_close(out, expected)
