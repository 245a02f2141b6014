"""Sets of positions against plain numpy, and the one object that equal sets are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pahq_plugin.engines.incremental.positions import PositionSets

LENGTH = 7
MASKS = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH).map(np.array)


def sets() -> PositionSets:
    return PositionSets(LENGTH, torch.device("cpu"))


@given(mask=MASKS)
def test_equal_sets_are_one_object(mask: np.ndarray) -> None:
    known = sets()
    made = known.of(mask)
    assert known.of(mask.copy()) is made
    assert made.array.tolist() == made.index.tolist() == np.flatnonzero(mask).tolist()
    assert len(made) == mask.sum()
    assert known.of(np.ones(LENGTH, dtype=bool)) is known.all


@given(wanted=MASKS, have=MASKS)
def test_shared_positions_are_found_in_both(wanted: np.ndarray, have: np.ndarray) -> None:
    """Values known at ``have`` and 0 elsewhere, taken at ``wanted`` by the two index tensors."""
    known = sets()
    inner, outer = known.of(wanted), known.of(have)
    full = torch.arange(1.0, LENGTH + 1) * torch.from_numpy(have)
    at, where = inner.shared(outer)
    values = full[outer.index] if at is None else full[outer.index][at]
    out = torch.zeros(len(inner))
    out[slice(None) if where is None else where] = values
    assert torch.equal(out, full[inner.index])
    assert inner.inside(outer) == bool((have | ~wanted).all())


@given(mask=MASKS, axis=st.sampled_from([-2, 1, 0]))
def test_cutting_takes_a_part(mask: np.ndarray, axis: int) -> None:
    known = sets()
    x = torch.randn(LENGTH, LENGTH, 3)
    part = known.of(mask)
    assert torch.equal(part.cut(x, known.all, axis), x.index_select(axis, part.index))
    assert part.within(known.all).tolist() == part.array.tolist()


@pytest.mark.parametrize("positions", [[], [0], [2, 5]])
def test_a_set_cuts_itself_to_itself(positions: list[int]) -> None:
    mask = np.isin(np.arange(LENGTH), positions)
    made = sets().of(mask)
    x = torch.randn(len(positions), 3)
    assert made.cut(x, made) is x
