"""The bundled model, and what is patched with."""

from __future__ import annotations

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations

import pahq_plugin as pahq


@pytest.fixture(scope="module")
def problem() -> pahq.Problem:
    return pahq.load_problem("ioi")


@pytest.fixture(scope="module")
def prompts(problem: pahq.Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean tokens and the outputs of sources on the corrupt ones."""
    batch = next(iter(problem.train_loader))
    return batch.clean, src_ablations(problem.model, batch.corrupt)
