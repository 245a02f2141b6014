"""Prompts that do not fit each other, the batch size or the model are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from torch import Tensor

from pahq_plugin.errors import PromptError
from tests.helpers.refused import refused_untouched
from tests.helpers.searches import discover
from tests.helpers.small import VOCABULARY, small_model, tokens


def prompts_of(
    clean: list[Tensor] | Tensor, corrupt: list[Tensor] | Tensor, batch_size: int = 2
) -> PromptDataLoader:
    n = len(clean)
    answers, wrong = [torch.tensor([1])] * n, [torch.tensor([2])] * n
    dataset = PromptDataset(clean, corrupt, answers, wrong)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=batch_size)


@pytest.mark.parametrize("method", ["pahq", "acdc", "eap", "Random"])
def test_every_method_refuses_prompts_that_do_not_fit(method: str) -> None:
    model, prompts = small_model(), prompts_of(tokens(0) + VOCABULARY, tokens(1))
    words = (f"vocabulary of {VOCABULARY}",)
    refused_untouched(PromptError, words, model, lambda: discover(model, prompts, method=method))


@pytest.mark.parametrize(
    ("prompts", "word"),
    [
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :4]), "one length", id="clean and corrupt"
        ),
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :1]), "1 tokens", id="one corrupt token"
        ),
        pytest.param(
            lambda: prompts_of(tokens(0)[:1], tokens(1)[:1]), "1 prompts", id="fewer than a batch"
        ),
        pytest.param(
            lambda: prompts_of(tokens(0) - VOCABULARY, tokens(1)), "vocabulary", id="a negative token"
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts: Callable[[], PromptDataLoader], word: str) -> None:
    model = small_model()
    refused_untouched(PromptError, (word,), model, lambda: discover(model, prompts(), method="acdc"))
