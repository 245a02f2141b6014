"""One head is in FP32 and the others are low, and an edge changes its own head alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.precision import modules as attention
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
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
    activations,
    attention_names,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)


def one_layer(model: PatchableModel, layer: int, residual: Tensor) -> dict[str, Tensor]:
    """Q, K and V of one layer that reads the given residual stream."""
    return activations(
        model, attention_names(layer), residual, start_at_layer=layer, stop_at_layer=layer + 1
    )


def assert_only_head_is_exact(value: Tensor, reference: Tensor, index: int, low: str) -> None:
    """Of ``[batch, pos, head, d]`` head ``index`` equals the reference, each other is low."""
    for each in range(value.shape[2]):
        got, wanted = value[:, :, each].double(), reference[:, :, each].double()
        if each == index:
            assert float((got - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
        else:
            assert LEAST_DB[low] <= signal_to_noise(wanted, got) <= MOST_DB


@pytest.mark.parametrize("low", LEAST_DB)
@pytest.mark.parametrize("kind", KINDS)
def test_the_investigated_head_is_fp32_and_the_others_are_low(
    models: dict[str, PatchableModel], kind: str, low: str
) -> None:
    """Each layer starts from the FP32 residual stream, so that only its own rounding is seen."""
    model = models[kind]
    for layer in range(2):
        name = f"blocks.{layer}.hook_resid_pre"
        residual = activations(model, [name], tokens())[name]
        exact = without_bias(model, layer, one_layer(model, layer, residual))
        with mixed_precision(model, PrecisionConfig(low=low)) as backend:
            for index in range(4):
                backend.investigate((layer, index))
                mixed = without_bias(model, layer, one_layer(model, layer, residual))
                for reference, value in zip(exact, mixed, strict=True):
                    assert_only_head_is_exact(value, reference, index, low)


@pytest.mark.parametrize("low", LEAST_DB)
def test_the_output_projection_of_the_investigated_head_is_fp32_too(low: str) -> None:
    """Against FP64, from the very value mixes that the projection read."""
    model = small_model()
    names = ["blocks.0.attn.hook_z", "blocks.0.attn.hook_result"]
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate((0, 2))
        z, result = activations(model, names, tokens()).values()
    exact = torch.einsum("bphi,hio->bpho", z.double(), model.blocks[0].attn.W_O.double())
    assert_only_head_is_exact(result, exact, 2, low)


@pytest.mark.parametrize("parts", ["qkv", "output"])
def test_parts_choose_which_projections_are_low(model: PatchableModel, parts: Any) -> None:
    names = [*attention_names(0), "blocks.0.attn.hook_result"]
    exact = activations(model, names, tokens())
    with mixed_precision(model, int8(parts=(parts,))):
        mixed = activations(model, names, tokens())
    same = [bool(torch.allclose(mixed[n], exact[n], rtol=1e-5, atol=1e-6)) for n in names]
    assert same == ([False] * 4 if parts == "qkv" else [True] * 3 + [False])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("scale", ["row", "head", "none"])
def test_patching_an_edge_changes_its_head_alone(scale: Any, separate_qkv: bool, layer: int) -> None:
    """With one scale per tensor the heads share it, so that case is another matter."""
    model = patchable(transformer(separate_qkv=separate_qkv), separate_qkv=separate_qkv)
    corrupt = ablated(model)
    with mixed_precision(model, PrecisionConfig(scale=scale)) as backend:
        backend.investigate((layer, 1))
        assert_edges_change_their_head_alone(model, corrupt, layer)


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_patching_an_edge_changes_its_head_alone_in_other_models(
    models: dict[str, PatchableModel], kind: str
) -> None:
    model = models[kind]
    corrupt = ablated(model)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, corrupt, 1)
    with patch_mode(model, corrupt, edges=[]):
        pass  # the models are shared: leave the masks at zero


def test_reading_the_first_head_for_all_would_be_noticed(
    model: PatchableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code reads head 0's split input for every head."""
    original = attention.project_heads

    def first_head_for_all(x: Tensor, master: Tensor, *rest: Any) -> Tensor:
        if x.shape[-1] == model.cfg.d_model:  # Q, K and V; z is d_head wide
            x = x[:, :, :1].expand_as(x)
        return original(x, master, *rest)

    corrupt = ablated(model)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, corrupt, 0)
        monkeypatch.setattr(attention, "project_heads", first_head_for_all)
        with pytest.raises(AssertionError):
            assert_edges_change_their_head_alone(model, corrupt, 0)
