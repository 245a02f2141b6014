"""Changed inputs on some of a pass's rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pahq_plugin.engines.incremental.positions import PositionSets
from pahq_plugin.engines.incremental.rows import Start
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.architectures import random_architecture
from tests.helpers.engines import engines


@given(
    first=st.integers(0, 4),
    own=st.integers(1, 4),
    behind=st.integers(0, 4),
    has_before=st.booleans(),
    has_after=st.booleans(),
    data=st.data(),
)
def test_parts_of_a_start_are_parts_of_the_whole(
    first: int, own: int, behind: int, has_before: bool, has_after: bool, data: st.DataObject
) -> None:
    n_rows = first + own + behind
    generator = torch.Generator().manual_seed(n_rows)
    delta = torch.randn(own, 2, 1, 3, generator=generator)
    before = torch.randn(2, 1, 3, generator=generator) if has_before else None
    after = torch.randn(2, 1, 3, generator=generator) if has_after else None
    whole = torch.zeros(n_rows, 2, 1, 3)
    if before is not None:
        whole[:first] = before
    whole[first : first + own] = delta
    if after is not None:
        whole[first + own :] = after
    begin = data.draw(st.integers(0, n_rows - 1))
    rows = slice(begin, data.draw(st.integers(begin + 1, n_rows)))
    found = torch.zeros(rows.stop - rows.start, 2, 1, 3)
    positions = PositionSets(1, torch.device("cpu")).all
    start = Start(positions, first, delta, before, after)
    for row in range(n_rows):
        shift = start.on_row(row)
        assert (torch.zeros(2, 1, 3) if shift is None else shift).equal(whole[row])
    for some, term in start.on(rows):
        assert term.shape[0] in (1, some.stop - some.start)
        found[some] += term
    assert found.equal(whole[rows])


def test_a_start_of_which_nothing_stays_ends_with_its_rows() -> None:
    positions = PositionSets(1, torch.device("cpu")).all
    start = Start(positions, 1, torch.ones(2, 1, 1, 1), None, None)
    assert list(start.on(slice(3, 9))) == []
    [(some, term)] = start.on(slice(0, 9))
    assert some == slice(1, 3) and term.sum() == pytest.approx(2)


def test_heads_that_change_an_mlp_at_different_positions() -> None:
    """Head 0 changes at token 3, head 1 from token 1 on; the MLP, which adds both up, reads all."""
    architecture = replace(
        random_architecture(0), n_layers=1, n_heads=2, d_head=8, d_model=64, d_mlp=32, attn_only=False,
        normalization="LN", positional="standard", rotary_dim=None, parallel_attn_mlp=False,
        gated_mlp=False, act_fn="gelu", attention_dir="causal", dtype=torch.float32, separate_qkv=True,
        positional_edges=True, out=None, length=4, diverge=0,
    )  # fmt: skip
    model, host, quick = engines(architecture)
    at = {"A0.0.V": 3, "A0.1.V": 1}
    edges = [e for e in canonical_edges(model) if at.get(e.dest.name) == e.seq_idx]
    fast = quick.effects(edges, [True, True], exact=True)
    slow = [host.effects([edge], [True], exact=True)[0] for edge in edges]
    assert len(fast) == len(slow) == 2 and all(slow)
    assert fast == pytest.approx(slow, rel=1e-3, abs=1e-6)
