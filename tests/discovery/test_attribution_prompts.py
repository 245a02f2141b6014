"""Methods that score edges use the batches that were drawn, and answers as searches do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attr import evolve
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import MetricError, PromptError
from pahq_plugin.host import AblationType
from pahq_plugin.host.prompts import loader_of
from pahq_plugin.metrics import logit_diff
from pahq_plugin.models.adapt import adapt
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model, tokens, transformer

MEAN = AblationType.TOKENWISE_MEAN_CORRUPT
Scores = dict[str, Tensor]


def batches_of(size: int, **options: Any) -> PromptDataLoader:
    """16 prompts with one right and one wrong answer each."""
    answers, wrong = ([torch.tensor([i + shift]) for i in range(16)] for shift in (0, 7))
    dataset = PromptDataset(tokens(0, 16), tokens(1, 16), answers, wrong)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=size, **options)


def scores_of(model: PatchableModel, given: PromptDataLoader, **settings: Any) -> Scores:
    return discover(model, given, **{"method": "eap", **settings}).prune_scores


def same(one: Scores, other: Scores, within: float = 0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-4, atol=within) for name in one)


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_the_batch_that_a_sampler_draws(method: str) -> None:
    last = batches_of(4, sampler=range(12, 16))
    model, first = small_model(), batches_of(4)
    found = scores_of(model, last, method=method)
    assert same(found, scores_of(model, loader_of(list(last), last), method=method))
    assert not same(found, scores_of(model, first, method=method))


def test_a_loader_that_shuffles_is_drawn_once() -> None:
    """The host reads a loader twice; of a shuffling one it would get other batches each time."""
    whole = scores_of(small_model(), batches_of(8), batches=None)
    for seed in (0, 1):
        shuffled = scores_of(small_model(), batches_of(8, shuffle=True), batches=None, seed=seed)
        assert same(shuffled, whole, 1e-5)


def test_means_over_the_data_set_are_of_the_whole_loader() -> None:
    """Whatever batches are differentiated; by hand, from the ablated sources of the whole loader."""
    model, given = small_model(), batches_of(8)
    found = scores_of(model, given, ablation=MEAN)
    question = Question(model, given, list(given)[:1], MEAN, ("logit_diff", logit_diff))
    expected = attribute_by_hooks(question, "clean", 1)
    assert same(found, expected, 1e-6)
    assert not same(found, scores_of(model, batches_of(8, sampler=range(8)), ablation=MEAN))


@pytest.mark.parametrize("ablation", list(AblationType))
def test_of_all_batches_it_is_the_hosts_own(ablation: AblationType) -> None:
    """Where both take means over the same prompts they agree, in scale and sign, too."""
    model, given = small_model(), batches_of(8)
    alone = ablation.mean_over_dataset or ablation is AblationType.ZERO
    hosts = mask_gradient_prune_scores(
        model, given, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0,
        ablation_type=ablation, clean_corrupt=None if alone else "corrupt",
    )  # fmt: skip
    assert same(scores_of(model, given, ablation=ablation, batches=None), hosts, 1e-5)


def with_answers(right: Any, wrong: Any) -> PromptDataLoader:
    (batch,) = loader()
    return loader_of([evolve(batch, answers=right, wrong_answers=wrong)], loader())


RIGHT, WRONG = torch.tensor([[1], [2], [3], [4]]), torch.tensor([[5], [6], [7], [8]])


def test_answers_in_a_list_on_one_side_only() -> None:
    """As the host collates prompts with as many right answers, but not wrong ones."""
    wrong = [torch.tensor([5, 6]), *(torch.tensor([i]) for i in (7, 8, 9))]
    mixed, lists = with_answers(RIGHT, wrong), with_answers(list(RIGHT), wrong)
    assert same(scores_of(small_model(), mixed), scores_of(small_model(), lists), 1e-6)


def test_the_same_answers_at_all_positions() -> None:
    model = adapt(transformer(), slice_output=None)
    at_each = [x[:, None].expand(-1, 6, -1) for x in (RIGHT, WRONG)]
    ours = scores_of(model, with_answers(RIGHT, WRONG))
    assert same(ours, scores_of(model, with_answers(*at_each)), 1e-6)


EMPTY = torch.empty((4, 0), dtype=torch.int64)
NO_TOKENS: dict[str, Any] = {
    "empty": EMPTY,
    "empty lists": list(EMPTY),
    "too high": torch.tensor([[1], [2], [3], [40]]),
    "negative": torch.tensor([[1], [2], [3], [-1]]),
    "bool": torch.ones((4, 1), dtype=torch.bool),
    "bytes": torch.ones((4, 1), dtype=torch.uint8),
    "complex": torch.ones((4, 1), dtype=torch.complex64),
    "scalar": torch.tensor(1),
}


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
@pytest.mark.parametrize("name", NO_TOKENS)
def test_answers_that_are_no_tokens(method: str, name: str) -> None:
    answers = NO_TOKENS[name]
    for given in (with_answers(answers, RIGHT), with_answers(RIGHT, answers)):
        with refused(MetricError, "0 to 39"):
            discover(small_model(), given, method=method)


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_answers_for_other_prompts(method: str) -> None:
    for given in (
        with_answers(list(RIGHT), list(WRONG)[:3]),
        with_answers(list(RIGHT)[:2], list(WRONG)),
    ):
        with refused(MetricError, "answers"):
            discover(small_model(), given, method=method)


@pytest.mark.parametrize("settings", [{"method": "acdc", "metric": "logit_diff"}, {"method": "eap"}])
def test_answers_of_other_positions_are_refused(settings: dict[str, Any]) -> None:
    """Not those of the first positions taken without a word."""
    model = adapt(transformer(), slice_output=None)
    few, each = torch.ones((4, 2, 1), dtype=torch.int64), torch.ones((4, 6, 1), dtype=torch.int64)
    for given in (with_answers(few, few), with_answers(each, few)):
        with refused(MetricError, "[4, 2, 1]"):
            discover(model, given, **settings)


@pytest.mark.parametrize("answers", [None, 3, "a"])
def test_data_sets_that_hold_no_tensors(answers: Any) -> None:
    dataset = PromptDataset(tokens(), tokens(1), [answers] * 4, [answers] * 4)
    given = PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=4)
    with refused(PromptError, "tensors"):
        discover(small_model(), given, method="acdc")


@pytest.mark.parametrize("method", ["acdc", "eap"])
def test_a_mean_looks_at_every_batch_first(method: str) -> None:
    (batch,) = loader()
    beyond = evolve(batch, clean=batch.clean + 90)
    with refused(PromptError, "vocabulary"):
        discover(small_model(), loader_of([batch, beyond], loader()), method=method, ablation=MEAN)
