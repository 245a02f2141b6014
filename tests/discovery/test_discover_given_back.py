"""A search gives the model and the random generators back as they were."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from auto_circuit.data import PromptDataLoader
from torch import Tensor

from tests.helpers.lent import random_states, unusual_state
from tests.helpers.searches import EAP, discover, small_edges
from tests.helpers.small import loader

OWN = ["pahq", "pahq-paper", "rtn-q", "acdc", "eactp", "eap", "eap-ig"]

HOST = ["Random", "ACDC", "Act Mag", "Edge Attribution Patching", EAP]


@pytest.mark.parametrize("method", OWN + HOST)
def test_the_model_is_given_back_as_it_was(method: str) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    result = discover(model, prompts, method=method)
    assert len(result.decisions) == len(model.edges)
    assert result.prune_scores
    before.assert_unchanged()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("method", OWN + HOST)
def test_the_random_generators_are_untouched(method: str, shuffle: bool) -> None:
    """Even asking a loader for its batches may draw from torch's generator."""
    model, data = small_edges(), loader(prompts=8).dataset
    prompts = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=4, shuffle=shuffle)
    states = random_states()
    discover(model, prompts, method=method)
    assert random_states() == states


@pytest.mark.parametrize("method", ["pahq", "acdc", "eactp", "eap", "eap-ig"])
def test_the_state_of_the_model_does_not_count(method: str) -> None:
    """Masks, training mode and gradients from before have no part in the result."""
    plain, odd = small_edges(), small_edges()
    unusual_state(odd)
    expected = discover(plain, loader(), method=method)
    assert discover(odd, loader(), method=method).decisions == expected.decisions


def raising(error: BaseException, after: int) -> Callable[..., Tensor]:
    """A metric that raises at its ``after``-th call."""
    calls = iter(range(after))

    def metric(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        if next(calls, None) is None:
            raise error
        return (logits - clean_logits).square().mean(dim=-1)

    return metric


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("method", ["pahq", "acdc", "rtn-q"])
@pytest.mark.parametrize("after", [0, 1, 25])
def test_the_model_is_given_back_when_the_metric_raises(
    after: int, method: str, engine: str, error: BaseException
) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    generators = random.getstate()
    with pytest.raises(type(error)) as caught:
        discover(model, prompts, method=method, engine=engine, metric=raising(error, after))
    assert caught.value is error
    before.assert_unchanged()
    assert random.getstate() == generators


@pytest.mark.parametrize("method", ["eap", "eap-ig", "ACDC"])
def test_the_model_is_given_back_when_a_scoring_method_is_interrupted(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    module = model.wrapped_model.unembed
    calls = iter(range(1))

    def interrupted(x: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return type(module).forward(module, x)

    monkeypatch.setitem(vars(module), "forward", interrupted)  # taken out again, not set to the old one
    with pytest.raises(KeyboardInterrupt):
        discover(model, prompts, method=method)
    monkeypatch.undo()
    before.assert_unchanged()


def test_two_searches_are_equal_and_draw_no_random_numbers() -> None:
    model, prompts = small_edges(), loader()
    first = discover(model, prompts, seed=1)
    torch.manual_seed(99)
    random.seed(99)
    assert discover(model, prompts, seed=1).decisions == first.decisions
