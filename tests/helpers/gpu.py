"""Models and prompts of the other helpers, on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from tests.helpers.families import LENGTH, family_loader, family_model

DEVICE = "cuda"


def moved(loader: PromptDataLoader, device: str = DEVICE) -> PromptDataLoader:
    """The same batches in the same order, on ``device``."""
    data: Any = loader.dataset
    dataset = PromptDataset(
        data.clean_prompts.to(device),
        data.corrupt_prompts.to(device),
        [answer.to(device) for answer in data.answers],
        [answer.to(device) for answer in data.wrong_answers],
    )
    return PromptDataLoader(
        dataset, seq_len=loader.seq_len, diverge_idx=loader.diverge_idx,
        batch_size=loader.batch_size, shuffle=False,
    )  # fmt: skip


def family_on_gpu(family: str, positional: bool = False, **changes: Any) -> PatchableModel:
    """A family's small model, adapted, with its parameters and buffers on the GPU."""
    model = family_model(family, **changes)
    model.to(DEVICE)
    return pahq.adapt(model, seq_len=LENGTH if positional else None)


def prompts_on_gpu(positional: bool = False) -> PromptDataLoader:
    """`family_loader` on the GPU."""
    return moved(family_loader(positional))


def taken(result: pahq.Discovery) -> list[tuple[str, bool]]:
    """The (edge, kept) sequence."""
    return [(str(decision.edge), decision.kept) for decision in result.decisions]


def free_memory() -> None:
    """Give back what torch's allocator holds without need."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
