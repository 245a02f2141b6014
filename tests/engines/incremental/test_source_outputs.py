"""Source outputs of our own forward against the host's hooks, which know nothing of it."""

from __future__ import annotations

import pytest
import torch

from pahq_plugin.engines.incremental.source_outputs import run_plain
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.blocks import unembed
from tests.helpers.small import KINDS, small_model, tokens

LENGTHS = (1, 7, 15, 16)
"""Below, at and above the number of keys that are computed together."""


def assert_equals_the_host(model: PatchableModel, length: int) -> None:
    prompts = tokens(length=length)
    run = run_plain(model, prompts, model.cfg.dtype)
    with torch.inference_mode():
        logits, cache = model.run_with_cache(prompts, return_cache_object=False)
    peak = max(float(cache[name].abs().max()) for name in cache)
    tolerance = {"rtol": 1e-4, "atol": 1e-6 * max(10.0, peak)}  # FP32 sums of terms up to the peak
    for layer in range(model.cfg.n_layers):
        z = cache[f"blocks.{layer}.attn.hook_z"].permute(2, 0, 1, 3)
        torch.testing.assert_close(run.sources.z[layer], z, **tolerance)
        if not model.cfg.attn_only:
            torch.testing.assert_close(run.sources.mlp[layer], cache[f"blocks.{layer}.hook_mlp_out"],
                                       **tolerance)  # fmt: skip
    torch.testing.assert_close(run.sources.embedding, cache["blocks.0.hook_resid_pre"], **tolerance)
    torch.testing.assert_close(unembed(model, run.final), logits, **tolerance)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_sources_are_the_hosts(kind: str, length: int) -> None:
    assert_equals_the_host(small_model(kind), length)


def test_sources_of_bidirectional_attention_are_the_hosts() -> None:
    """Spare keys need a mask of their own where there is no causal one."""
    for length in LENGTHS:
        assert_equals_the_host(small_model(attention_dir="bidirectional"), length)


def test_the_storage_format_rounds_what_is_stored_alone() -> None:
    model = small_model()
    exact = run_plain(model, tokens(), torch.float32)
    stored = run_plain(model, tokens(), torch.bfloat16)
    assert torch.equal(exact.final, stored.final)
    for wide, narrow in zip(exact.sources.z, stored.sources.z, strict=True):
        assert torch.equal(wide.to(torch.bfloat16), narrow)
    assert stored.sources.nbytes * 2 == exact.sources.nbytes
