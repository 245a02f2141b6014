"""The arithmetic of a lent model: layouts of weights, scales, kinds of attention, and noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.choices import POLICIES
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import get_format
from tests.helpers import architectures
from tests.helpers.mixed import (
    LEAST_DB,
    MOST_DB,
    ablated,
    assert_edges_change_their_head_alone,
    int8,
    without_bias,
)
from tests.helpers.small import (
    KINDS,
    OTHER_KINDS,
    activations,
    attention_names,
    logits,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)


@contextmanager
def transposed_weights(model: PatchableModel) -> Iterator[None]:
    """Every weight matrix of the blocks laid out column by column, as a transposed view."""
    weights = [p for n, p in model.named_parameters() if ".W_" in n and ".blocks." in n]
    contiguous = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.mT.contiguous().mT
    try:
        yield
    finally:
        for weight, data in zip(weights, contiguous, strict=True):
            weight.data = data


@pytest.mark.parametrize("low", LEAST_DB)
@pytest.mark.parametrize("shape", [{}, {"n_heads": 1, "d_head": 32, "d_mlp": 32}])
def test_transposed_weights_give_the_same_output(low: str, shape: dict[str, int]) -> None:
    """d_model is n_heads * d_head in both, so that a wrong matrix would have the right shape."""
    model = small_model(**shape)
    assert model.cfg.d_model == model.cfg.n_heads * model.cfg.d_head
    exact = logits(model, tokens())
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)) as backend:
        backend.investigate((1, 0))
        usual = logits(model, tokens())
        with transposed_weights(model):
            assert not model.blocks[0].attn.W_Q.is_contiguous()
            other = logits(model, tokens())
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-4)
    assert signal_to_noise(exact, usual) > LEAST_DB[low] - 10


@pytest.mark.parametrize("low", ["fp8_e4m3", "fp8_e5m2", "int8"])
def test_outputs_of_projections_have_more_than_8_bits(model: PatchableModel, low: str) -> None:
    names = [*attention_names(0), "blocks.0.attn.hook_result", "blocks.0.hook_mlp_out"]
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)):
        values = activations(model, names, tokens())
    for value in values.values():
        assert value.dtype == torch.float32
        assert len(value.unique()) > 2 * 256
        assert not torch.equal(value, get_format(low).round_trip(value))


def test_unscaled_values_are_rounded_but_their_products_are_not(model: PatchableModel) -> None:
    with mixed_precision(model, PrecisionConfig(scale="none")):
        value = activations(model, attention_names(0, "q"), tokens())["blocks.0.attn.hook_q"]
    plain = value - model.blocks[0].attn.b_Q
    assert not torch.equal(plain, get_format("fp8_e4m3").round_trip(plain))


def flushed_share(weight: Tensor, scale: Any) -> float:
    low = get_format("fp8_e4m3").quantise_weight(weight, scale)
    return float(((low.codes.float() == 0) & (weight != 0)).float().mean())


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O"])
def test_small_weights_vanish_only_without_scales(model: PatchableModel, name: str) -> None:
    """E4M3's least value is 2^-9. Weights of GPT-2's size, near 0.02, are within a few steps of it;
    scaled rows reach 448, some 10^5 times as much."""
    weight = getattr(model.blocks[0].attn, name)
    small = 0.02 * weight / weight.std()
    assert flushed_share(small, "none") > 0.03
    assert flushed_share(small, "row") < 1e-3


def test_unscaled_small_weights_cost_signal(model: PatchableModel) -> None:
    """The same through the backend: queries of small weights, with and without scales."""
    model.blocks[0].attn.W_Q.data.mul_(0.02)
    exact = without_bias(model, 0, activations(model, attention_names(0), tokens()))[0]
    noise = {}
    for scale in ("row", "none"):
        with mixed_precision(model, PrecisionConfig(scale=scale)):  # type: ignore[arg-type]
            mixed = without_bias(model, 0, activations(model, attention_names(0), tokens()))[0]
        noise[scale] = signal_to_noise(exact, mixed)
    assert noise["row"] > LEAST_DB["fp8_e4m3"] > noise["none"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_policy_is_fp32(models: dict[str, PatchableModel], kind: str) -> None:
    model = models[kind]
    exact = logits(model, tokens())
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, tokens()), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8(policy="uniform")):
        assert signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("changes", OTHER_KINDS, ids=lambda changes: next(iter(changes)))
def test_other_kinds_of_attention_and_mlp(changes: dict[str, Any]) -> None:
    """Each is the model's own in full precision, and near it in int8."""
    model = patchable(transformer(**changes))
    exact = logits(model, tokens())
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, tokens()), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, ablated(model), 1)
        with patch_mode(model, ablated(model), edges=[]):
            assert 15 < signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_stay_near_fp32(models: dict[str, PatchableModel], kind: str, low: str) -> None:
    """Two layers and an MLP each add to the noise of one product."""
    model = models[kind]
    exact = logits(model, tokens())
    with mixed_precision(model, PrecisionConfig(low=low)):
        assert LEAST_DB[low] - 10 < signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
def test_float64_models_stay_float64(low: str) -> None:
    model = small_model(dtype=torch.float64)
    names = attention_names(0)
    exact = activations(model, names, tokens())
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate((0, 1))
        mixed = activations(model, names, tokens())
        assert logits(model, tokens()).dtype == torch.float64
        assert_edges_change_their_head_alone(model, ablated(model), 0)
    for name in names:
        difference = (mixed[name] - exact[name])[:, :, 1].abs().max()
        assert float(difference) < 1e-13
        assert float((mixed[name] - exact[name])[:, :, 2].abs().max()) > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_random_architectures_run_in_every_policy(seed: int) -> None:
    model, batches = architectures.build(architectures.random_architecture(seed, max_edges=300))
    prompts = next(iter(batches)).clean
    exact = logits(model, prompts)
    for policy in POLICIES:
        with mixed_precision(model, PrecisionConfig(policy=policy)) as backend:
            backend.investigate(canonical_edges(model)[-1])
            mixed = logits(model, prompts)
        assert mixed.dtype == exact.dtype
        assert signal_to_noise(exact, mixed) > (90 if policy == "full" else 3)


def test_the_default_precision_is_low_somewhere(model: PatchableModel) -> None:
    exact = logits(model, tokens())
    with mixed_precision(model) as backend:
        assert not backend.precision.is_exact
        assert signal_to_noise(exact, logits(model, tokens())) < MOST_DB
