"""Models that cannot be patched are refused, and neither searched nor lent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, ModelError, PromptError
from pahq_plugin.precision.backend import mixed_precision
from tests.helpers.broken import BROKEN_MODELS, unseparated
from tests.helpers.refused import refused_untouched
from tests.helpers.searches import discover
from tests.helpers.small import loader, patchable, small_model, transformer

Problem = tuple[PatchableModel, PromptDataLoader]

METHODS = ["pahq", "pahq-paper", "rtn-q", "eap", "eap-ig", "ACDC", "Random"]


@pytest.mark.parametrize("broken", BROKEN_MODELS)
def test_a_model_that_cannot_be_patched_is_refused(broken: str) -> None:
    make, word = BROKEN_MODELS[broken]
    model = make()
    refused_untouched(ModelError, (word,), model, lambda: discover(model, loader(), method="acdc"))


@pytest.mark.parametrize("broken", ["use_attn_result", "NaN"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_such_a_model(broken: str, method: str) -> None:
    make, word = BROKEN_MODELS[broken]
    model = make()
    refused_untouched(ModelError, (word,), model, lambda: discover(model, loader(), method=method))


@pytest.mark.parametrize("broken", ["use_attn_result", "NaN"])
def test_such_a_model_is_not_lent(broken: str) -> None:
    make, word = BROKEN_MODELS[broken]
    model = make()
    refused_untouched(ModelError, (word,), model, lambda: pahq.mixed_precision(model).__enter__())


def test_the_same_models_work_once_they_are_right() -> None:
    """Otherwise the refusals above would prove nothing."""
    for model in (small_model(), unseparated()):
        assert len(discover(model, loader(), method="acdc").decisions) == len(model.edges)
    ungrouped = transformer(n_key_value_heads=2)
    ungrouped.cfg.ungroup_grouped_query_attention = True
    assert discover(patchable(ungrouped), loader(), method="acdc").decisions


def of_hugging_face() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=1))


@pytest.mark.parametrize(
    ("model", "instead"),
    [
        (transformer(), "adapt"),
        (of_hugging_face(), "from_hugging_face"),
        (SimpleNamespace(model=small_model()), r"\.model"),
        (loader(), "first"),
        ("gpt2", "load_problem"),
        (torch.nn.Linear(2, 2), "patchable_model"),
        (None, "patchable_model"),
    ],
)
def test_what_is_no_host_model_is_refused(model: Any, instead: str) -> None:
    with pytest.raises(ModelError, match=instead):
        discover(model, loader())


def test_what_is_no_loader_is_refused() -> None:
    model, prompts = small_model(), loader()
    problem = SimpleNamespace(train_loader=prompts)
    with pytest.raises(PromptError, match="train_loader"):
        discover(model, problem)  # type: ignore[arg-type]
    for wrong in (next(iter(prompts)), "prompts.json", torch.zeros(2, 3)):
        with pytest.raises(PromptError, match="PromptDataLoader"):
            discover(model, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp8", torch.bfloat16, {"low": "int8"}])
def test_what_is_no_precision_is_refused(precision: Any) -> None:
    model = small_model()
    with pytest.raises(ConfigError, match="PrecisionConfig"):
        discover(model, loader(), precision=precision)
    with (
        pytest.raises(ConfigError, match="PrecisionConfig"),
        mixed_precision(model, precision),
    ):
        pass


def micro() -> Problem:
    model = patchable_model(MicroModel(), factorized=True, slice_output="last_seq")
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randn(2, 3, 2, generator=generator) for _ in range(2))
    nothing = [torch.tensor([0])] * 2
    dataset = PromptDataset(list(clean), list(corrupt), nothing, nothing)
    return model, PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=2)


@pytest.mark.parametrize("method", ["pahq", "pahq-paper", "rtn-q", "eap-ig"])
def test_a_method_of_heads_refuses_what_is_no_transformer(method: str) -> None:
    model, prompts = micro()
    words = (method, "not a transformer")
    refused_untouched(ModelError, words, model, lambda: discover(model, prompts, method=method))


def test_mixed_precision_refuses_what_is_no_transformer() -> None:
    model, _ = micro()
    refused_untouched(
        ModelError, ("not a transformer",), model, lambda: pahq.mixed_precision(model).__enter__()
    )


def test_acdc_takes_a_model_that_is_no_transformer() -> None:
    from tests.helpers.replay import threshold_for_share

    model, prompts = micro()
    threshold, expected = threshold_for_share(model, prompts, metric="mse")
    result = discover(model, prompts, method="acdc", metric="mse", threshold=threshold)
    by_edge = {decision.edge: decision for decision in result.decisions}
    assert by_edge.keys() == model.edges and 0 < len(result.circuit) < len(model.edges)
    if [d.edge for d in result.decisions] == [d.edge for d in expected]:
        assert [d.kept for d in result.decisions] == [d.kept for d in expected]
