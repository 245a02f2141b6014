"""The incremental engine on other kinds of attention, MLPs and prompts, against full host forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin.discovery.discover import discover
from pahq_plugin.errors import PahqWarning, PromptError
from tests.helpers.replay import replay
from tests.helpers.small import OTHER_KINDS, loader, patchable, tokens, transformer

GROUPED_LLAMA: dict[str, Any] = {
    "n_key_value_heads": 1, "ungroup_grouped_query_attention": True, "gated_mlp": True,
    "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8,
}  # fmt: skip


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
@pytest.mark.parametrize("kind", [*OTHER_KINDS, GROUPED_LLAMA], ids=lambda kind: next(iter(kind)))
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


class LeftPadding:
    """What the host asks of a tokenizer that pads on the left with its first token, as GPT-2's."""

    padding_side = "left"
    pad_token_id = bos_token_id = 0


PAIRS = [
    pytest.param([([0, 3, 5, 7, 9], [0, 4, 5, 7, 9]), ([0, 3, 6, 9], [0, 3, 7, 9])], id="alike"),
    pytest.param([([0, 3, 5, 7, 9], [0, 5, 7, 9]), ([0, 3, 6, 8, 9], [0, 6, 8, 9])], id="corrupt"),
    pytest.param([([0, 5, 7, 9], [0, 3, 5, 7, 9]), ([0, 6, 8, 9], [0, 3, 6, 8, 9])], id="clean"),
]


@pytest.mark.parametrize("changes", [{}, {"positional_embedding_type": "rotary", "rotary_dim": 8}])
@pytest.mark.parametrize("pairs", PAIRS)
def test_padding_on_the_left(pairs: list[tuple[list[int], list[int]]], changes: dict[str, Any]) -> None:
    """Where only one prompt of a pair is padded, equal tokens mean different activations."""
    model = patchable(transformer(**changes))
    model.wrapped_model.tokenizer = LeftPadding()
    clean, corrupt = (torch.tensor([[0] * (5 - len(p[i])) + p[i] for p in pairs]) for i in (0, 1))
    prompts = batch(clean, corrupt)
    result = discover(model, prompts, method="acdc", threshold=1e-3, progress=False)
    assert result.settings["engine"] == "incremental"
    report = replay(model, prompts, result.decisions, threshold=1e-3, sample=None)
    assert report.agrees, report


class TwoLengths(PromptDataLoader):
    """One batch of 6 tokens and one of 8."""

    def __init__(self) -> None:
        self.parts = [batch(tokens(0, length=n), tokens(1, length=n)) for n in (6, 8)]
        super().__init__(self.parts[0].dataset, seq_len=None, diverge_idx=0, batch_size=4)

    def __iter__(self) -> Any:
        for part in self.parts:
            yield from part

    def __len__(self) -> int:
        return 2


def test_batches_of_different_lengths_run_on_the_host() -> None:
    model, prompts = patchable(transformer()), TwoLengths()
    options: dict[str, Any] = {"method": "acdc", "threshold": 0.01, "progress": False}
    with pytest.warns(PahqWarning, match="lengths"):
        result = discover(model, prompts, batches=None, engine="incremental", **options)
    assert result.settings["engine"] == "host"
    report = replay(model, prompts, result.decisions, threshold=0.01, batches=None, sample=None)
    assert report.agrees, report
    with pytest.raises(PromptError, match="6, 8"):
        discover(model, prompts, ablation="tokenwise_mean_clean", **options)


@pytest.mark.parametrize("engine", ["incremental", "host"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_metric_may_write_into_its_arguments(written: int, engine: str) -> None:
    def plain(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        return (logits - clean_logits).square().mean(dim=-1)

    def writing(*arguments: Any) -> Tensor:
        loss = plain(*arguments)
        arguments[written].zero_()
        return loss

    model = patchable(transformer())
    options: dict[str, Any] = {"method": "acdc", "threshold": 0.003, "progress": False}
    results = [discover(model, loader(), metric=m, engine=engine, **options) for m in (plain, writing)]
    assert results[0].decisions == results[1].decisions
    assert 0 < len(results[0].circuit) < len(results[0].decisions)
