"""Equal decisions whatever the threads and batches; between processes see discovery/test_register,
discovery/test_checkpoint_kills and test_distributed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from auto_circuit.data import PromptDataLoader

from pahq_plugin.discovery.discover import discover
from tests.helpers.small import KINDS, loader, small_model

THRESHOLD = 0.003


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def kept(kind: str, method: str, engine: str, batch_size: int, seed: int) -> list[tuple[str, bool]]:
    """The (edge, kept) sequence; prompts are the same whatever the size of a batch."""
    whole = loader(seed, prompts=8)
    prompts = PromptDataLoader(
        whole.dataset, seq_len=whole.seq_len, diverge_idx=whole.diverge_idx, batch_size=batch_size,
        shuffle=False,
    )  # fmt: skip
    result = discover(
        small_model(kind, seed), prompts, method=method, engine=engine, threshold=THRESHOLD,
        batches=None, progress=False,
    )  # fmt: skip
    return [(decision.edge.name, decision.kept) for decision in result.decisions]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("engine", ["incremental", pytest.param("host", marks=pytest.mark.full)])
@pytest.mark.parametrize("method", [pytest.param("acdc", marks=pytest.mark.full), "pahq"])
@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.full) for k in sorted(KINDS)[:2]), sorted(KINDS)[2]]
)
def test_threads_and_batches_change_no_decision(kind: str, method: str, engine: str, seed: int) -> None:
    torch.set_num_threads(1)
    expected = kept(kind, method, engine, 8, seed)
    for threads, batch_size in ((2, 8), (3, 8), (1, 4), (1, 2), (2, 1)):
        torch.set_num_threads(threads)
        assert kept(kind, method, engine, batch_size, seed) == expected, (threads, batch_size)
