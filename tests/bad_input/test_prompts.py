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
from tests.helpers.small import VOCABULARY, loader, patchable, small_model, tokens, transformer


def prompts_of(
    clean: list[Tensor] | Tensor, corrupt: list[Tensor] | Tensor, batch_size: int = 2
) -> PromptDataLoader:
    n = len(clean)
    answers, wrong = [torch.tensor([1])] * n, [torch.tensor([2])] * n
    dataset = PromptDataset(clean, corrupt, answers, wrong)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=batch_size)


@pytest.mark.parametrize("method", ["pahq", "acdc", "eap", "Random"])
@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :4]),
            ("one length", "(6)", "(4)"),
            id="clean and corrupt",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0), tokens(1)[:, :1]),
            ("clean and corrupt", "6 and 1 tokens"),
            id="one corrupt token",
        ),
        pytest.param(
            lambda: prompts_of([tokens(0)[0], tokens(0)[1, :4]], list(tokens(1)[:2])),
            ("one length",),
            id="within a batch",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0)[:1], tokens(1)[:1]),
            ("empty", "1 prompts", "batch size of 2"),
            id="fewer than a batch",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0) + VOCABULARY, tokens(1)),
            (f"vocabulary of {VOCABULARY}",),
            id="too high a token",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0) - VOCABULARY, tokens(1)),
            (f"vocabulary of {VOCABULARY}",),
            id="a negative token",
        ),
        pytest.param(
            lambda: prompts_of(tokens(0, length=17), tokens(1, length=17)),
            ("17 tokens", "context of 16"),
            id="too long",
        ),
    ],
)  # fmt: skip
def test_prompts_that_do_not_fit_are_refused(
    prompts: Callable[[], PromptDataLoader], words: tuple[str, ...], method: str
) -> None:
    model = small_model()
    refused_untouched(PromptError, words, model, lambda: discover(model, prompts(), method=method))


def test_an_empty_data_set_is_refused() -> None:
    model, prompts = small_model(), prompts_of([], [])
    refused_untouched(PromptError, ("empty", "0 prompts"), model, lambda: discover(model, prompts))


@pytest.mark.parametrize("method", ["acdc", "eap", "Random"])
def test_more_batches_than_the_loader_has_are_refused(method: str) -> None:
    model = small_model()
    words = ("batches=2", "holds 1")
    refused_untouched(
        PromptError, words, model, lambda: discover(model, loader(), method=method, batches=2)
    )


def test_prompts_of_another_length_than_the_graph_are_refused() -> None:
    model = patchable(transformer(), seq_len=5)
    refused_untouched(PromptError, ("seq_len=5", "6"), model, lambda: discover(model, loader()))
