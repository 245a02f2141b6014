"""The narrow first product of MLPs against the MLP itself on the changed input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pahq_plugin.engines.incremental.narrow_mlp import NarrowMlp
from pahq_plugin.models.blocks import linear_norm, normalise
from tests.helpers.small import small_model

NORMS: list[dict[str, Any]] = [
    {"normalization_type": name} for name in ("LN", "LNPre", "RMS", "RMSPre", None)
]
MLPS: list[dict[str, Any]] = [{}, {"gated_mlp": True, "act_fn": "silu"}]


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: str(n["normalization_type"]))
def test_a_norm_taken_apart_is_the_norm(norm: dict[str, Any]) -> None:
    block = small_model(**norm).blocks[1]
    parts = linear_norm(block.ln2)
    assert parts is not None
    x = torch.randn(5, 3, 32) * 4 + 1
    out, inverse = parts.direction(x), parts.inverse_size(x)
    out = out if inverse is None else out * inverse
    out = out if parts.b is None else out + parts.b
    torch.testing.assert_close(out, block.ln2(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, normalise(block.ln2, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mlp", MLPS, ids=["plain", "gated"])
@pytest.mark.parametrize("norm", NORMS, ids=lambda n: str(n["normalization_type"]))
@pytest.mark.parametrize("heads", [[(0, 2)], [(0, 1), (1, 3)]])
def test_it_is_the_mlp_on_the_changed_input(
    norm: dict[str, Any], mlp: dict[str, Any], heads: list[tuple[int, int]]
) -> None:
    model = small_model(**norm, **mlp)
    narrow, block = NarrowMlp(model.blocks, model.cfg.d_model, 2**23), model.blocks[1]
    generator = torch.Generator().manual_seed(0)
    x_now = torch.randn(10, 32, generator=generator)
    dz = torch.randn(3, 10, 8 * len(heads), generator=generator)
    parts = dz.split(8, dim=-1)
    change = sum(
        part @ model.blocks[layer].attn.W_O[head]
        for part, (layer, head) in zip(parts, heads, strict=True)
    )
    x = x_now + change
    with torch.inference_mode():
        assert narrow.pays(1, 8 * len(heads)) and not narrow.pays(1, 24)
        for _ in range(2):  # made, and then remembered
            out = narrow(1, x, x_now, heads, dz)
            torch.testing.assert_close(out, block.mlp(block.ln2(x)), rtol=1e-4, atol=1e-5)
