"""Shares of prompts, agreement, and a single process; searches are in `tests/test_distributed.py`."""

from __future__ import annotations

import pytest
import torch
from auto_circuit.data import PromptPairBatch

from pahq_plugin.errors import DistributedError, MetricError
from pahq_plugin.system.processes import ALONE, World, current_world


def batch(prompts: int, listed: bool = False) -> PromptPairBatch:
    tokens = torch.arange(prompts * 3).reshape(prompts, 3)
    answers = [torch.tensor([i]) for i in range(prompts)] if listed else tokens[:, :1]
    return PromptPairBatch(7, 0, tokens, tokens + 1, answers, answers)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("prompts", "size"), [(8, 2), (8, 3), (5, 5), (7, 4)])
def test_every_prompt_has_one_process(prompts: int, size: int, listed: bool) -> None:
    whole = batch(prompts, listed)
    parts = [World(rank, size).share_of(whole) for rank in range(size)]
    assert torch.equal(torch.cat([part.clean for part in parts]), whole.clean)
    assert torch.equal(torch.cat([part.corrupt for part in parts]), whole.corrupt)
    assert [int(a) for part in parts for a in part.answers] == [int(a) for a in whole.answers]
    sizes = [len(part.clean) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_fewer_prompts_than_processes() -> None:
    with pytest.raises(DistributedError, match="2 prompts"):
        World(0, 3).share_of(batch(2))


@pytest.mark.parametrize("rank", range(3))
def test_one_process_with_another_model_stops_all(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [{"seed": 0, "model": model} for model in ("a", "a", "b")]
    monkeypatch.setattr(World, "collect", lambda self, value: settings)
    other = 2 if rank < 2 else 0
    with pytest.raises(DistributedError, match=f"process {other} .*model.* process {rank}"):
        World(rank, 3).agree(settings[rank])


@pytest.mark.parametrize(
    ("theirs", "agree"), [(0.3, True), (0.300001, True), (0.301, False), (None, False)]
)
def test_what_is_measured_may_be_rounded_otherwise(
    theirs: float | None, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other hardware, for example."""
    settings = [{"corrupt_loss": 0.3}, {"corrupt_loss": theirs}]
    monkeypatch.setattr(World, "collect", lambda self, value: settings)
    if agree:
        World(0, 2).agree(settings[0])
        return
    with pytest.raises(DistributedError, match="corrupt_loss"):
        World(0, 2).agree(settings[0])


def test_a_world_of_one_exchanges_nothing() -> None:
    assert current_world() is ALONE and ALONE.is_first
    assert ALONE.share_of(whole := batch(2)) is whole
    assert ALONE.any([True, False]) == [True, False]
    assert ALONE.share(lambda: 5) == 5
    assert ALONE.collect(5) == [5]

    def fails() -> torch.Tensor:
        raise MetricError("mine")

    with pytest.raises(MetricError, match="mine"):
        ALONE.total(fails, 1)
