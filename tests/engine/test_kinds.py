"""The incremental engine on other kinds of attention, MLPs and prompts, against full host forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin.discovery import discover
from tests.helpers.replay import replay
from tests.helpers.small import loader, patchable, tokens, transformer

KINDS: list[dict[str, Any]] = [
    {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    {"n_key_value_heads": 1, "ungroup_grouped_query_attention": True, "gated_mlp": True,
     "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8},
    {"positional_embedding_type": "alibi"},
    {"attention_dir": "bidirectional"},
    {"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 5.0},
    {"scale_attn_by_inverse_layer_idx": True, "attn_only": True},
    {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]},
    {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True},
    {"act_fn": "solu_ln"},
]  # fmt: skip


def batch(clean: Tensor, corrupt: Tensor) -> PromptDataLoader:
    answers = [torch.tensor([i]) for i in range(len(clean))]
    dataset = PromptDataset(clean, corrupt, answers, answers)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=len(clean), shuffle=False)


def assert_replays(model: PatchableModel, prompts: PromptDataLoader, method: str) -> None:
    result = discover(
        model, prompts, method=method, threshold=0.01, engine="incremental", progress=False
    )
    assert result.settings["engine"] == "incremental"
    report = replay(model, prompts, result.decisions, threshold=0.01, sample=None)
    assert report.agrees, report
    assert 0.02 <= report.share_kept <= 0.6, report


@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_other_kinds_of_attention_and_mlp(kind: dict[str, Any], method: str) -> None:
    assert_replays(patchable(transformer(**kind)), loader(), method)


@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_prompts_that_begin_to_differ_at_different_positions(method: str) -> None:
    """Tokens before a prompt's first difference are not computed, those of other prompts are."""
    clean, other = tokens(0), tokens(1)
    corrupt = clean.clone()
    for row, first in enumerate((0, 2, 4, 5)):
        corrupt[row, first:] = other[row, first:]
    assert_replays(patchable(transformer()), batch(clean, corrupt), method)


@pytest.mark.parametrize("length", [15, 16])
def test_lengths_around_a_whole_number_of_keys(length: int) -> None:
    clean, corrupt = tokens(0, length=length), tokens(1, length=length)
    assert_replays(patchable(transformer()), batch(clean, corrupt), "acdc")


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("prefix", [1, 3])
def test_caches_of_a_common_prefix(prefix: int, rotary: bool) -> None:
    changes = {"positional_embedding_type": "rotary", "rotary_dim": 8} if rotary else {}
    inner, clean, corrupt = transformer(**changes), tokens(0), tokens(1)
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", len(clean))
    with torch.inference_mode():
        inner(clean[:, :prefix], past_kv_cache=cache)
    cache.freeze()
    model = patchable(inner, kv_caches=(cache,))
    assert_replays(model, batch(clean[:, prefix:], corrupt[:, prefix:]), "acdc")
