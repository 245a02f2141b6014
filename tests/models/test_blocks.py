"""Norms and logits computed block by block, against TransformerLens' own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.utils.graph_utils import patchable_model
from torch import nn
from transformer_lens.components import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre

from pahq_plugin.models.blocks import (
    AttentionMath,
    embed,
    linear_norm,
    normalise,
    output_positions,
    unembed,
    unsupported,
)
from tests.helpers.small import KINDS, OTHER_KINDS, small_model, tokens, transformer

CLOSE = 1e-12
"""Relative, of FP64 computed in two orders."""

NORMS = [LayerNorm, LayerNormPre, RMSNorm, RMSNormPre]


def made(kind: type) -> Any:
    norm = kind(transformer().cfg).double()
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data = torch.randn(32, dtype=torch.float64, generator=torch.manual_seed(seed))
    norm.cfg.dtype = torch.float64  # else its input is rounded to FP32
    return norm


def vectors() -> torch.Tensor:
    return 3 + torch.randn(5, 4, 32, dtype=torch.float64, generator=torch.manual_seed(9))


@pytest.mark.parametrize("kind", NORMS)
def test_norms_are_those_of_the_modules(kind: type) -> None:
    norm, x = made(kind), vectors()
    torch.testing.assert_close(normalise(norm, x), norm(x), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_its_direction_over_its_size(kind: type) -> None:
    norm, x = made(kind), vectors()
    parts = linear_norm(norm)
    assert parts is not None
    inverse = parts.inverse_size(x)
    assert inverse is not None and inverse.shape == (5, 4, 1)
    whole = parts.direction(x) * inverse + (0 if parts.b is None else parts.b)
    torch.testing.assert_close(whole, norm(x), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(  # linear, so that it can be folded into weights
        parts.direction(2 * x[0] - x[1]), 2 * parts.direction(x[0]) - parts.direction(x[1])
    )


@pytest.mark.parametrize("kind", NORMS)
def test_gradients_behind_a_norm_are_taken_to_its_input(kind: type) -> None:
    norm, x = made(kind), vectors().requires_grad_()
    after = torch.randn(3, *x.shape, dtype=x.dtype, generator=torch.manual_seed(1))
    expected = [torch.autograd.grad(norm(x), x, own)[0] for own in after]
    parts = linear_norm(norm)
    assert parts is not None
    with torch.no_grad():
        found = parts.pull_back_(x, after)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_an_identity_is_a_norm_and_others_are_not() -> None:
    identity = linear_norm(nn.Identity())
    assert identity is not None and identity.inverse_size(vectors()) is None
    assert torch.equal(identity.direction(vectors()), vectors())
    assert linear_norm(nn.LayerNorm(32)) is not None
    assert linear_norm(nn.BatchNorm1d(32)) is None


@pytest.mark.parametrize("kind", [*KINDS, {"output_logits_soft_cap": 5.0}], ids=str)
def test_logits_of_the_last_residual_stream(kind: Any) -> None:
    model = small_model(kind) if isinstance(kind, str) else small_model(**kind)
    prompts = tokens()
    _, cache = model.run_with_cache(prompts, return_cache_object=False)
    last = cache["blocks.1.hook_resid_post"]
    torch.testing.assert_close(unembed(model, last), model(prompts))
    some = slice(3, 9)
    torch.testing.assert_close(unembed(model, last, some), model(prompts)[..., some])
    residual, padding = embed(model, prompts)
    assert torch.equal(residual, cache["blocks.0.hook_resid_pre"]) and padding is None


def test_output_positions_by_hand() -> None:
    inner = transformer()
    for chosen, expected in {
        "last_seq": ([3], True),
        "not_first_seq": ([1, 2, 3], False),
        None: ([0, 1, 2, 3], False),
    }.items():
        model = patchable_model(inner, factorized=True, slice_output=chosen, separate_qkv=True)  # type: ignore[arg-type]
        assert output_positions(model, 4) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        *((kind, None) for kind in OTHER_KINDS),
        ({"positional_embedding_type": "shortformer"}, "shortformer positions"),
        ({"dtype": torch.float16}, "weights in torch.float16"),
    ],
    ids=str,
)
def test_what_goes_to_the_hosts_forward(changes: dict[str, Any], reason: str | None) -> None:
    assert unsupported(small_model(**changes), 6) == reason


@pytest.mark.parametrize("changes", [{}, {"positional_embedding_type": "alibi"}], ids=["own", "alibi"])
def test_attention_of_some_prompts_is_theirs(changes: dict[str, Any]) -> None:
    model = patchable_model(
        transformer(**changes), factorized=True, separate_qkv=True, device=torch.device("cpu")
    )
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]])
    math = AttentionMath(model, 0, torch.zeros(4, 6, 32), padding)
    q, k, v = torch.randn(3, 4, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    some, heads, where = torch.tensor([3, 1]), list(range(4)), torch.arange(6)
    mine = math.of_prompts(some)
    found = mine.mix(q[:, :, some], k[:, :, some], v[:, :, some], heads, where)
    wanted = math.mix(q, k, v, heads, where)
    torch.testing.assert_close(found, wanted[:, :, some])
    assert not torch.allclose(wanted[:, :, 0], wanted[:, :, 3], atol=1e-3)
