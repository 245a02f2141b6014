"""KV caches of a common prefix: those that fit neither model nor loader are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader
from auto_circuit.utils.patchable_model import PatchableModel
from transformer_lens import HookedTransformer, HookedTransformerKeyValueCache

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError, PromptError
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, patchable, small_model, tokens, transformer

PREFIX = 3


def prefix_cache(
    inner: HookedTransformer, seed: int = 7, length: int = PREFIX, prompts: int = 4
) -> HookedTransformerKeyValueCache:
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", prompts)
    with torch.inference_mode():
        inner(tokens(seed, prompts, length), past_kv_cache=cache)
    cache.freeze()
    return cache


def behind(cache: HookedTransformerKeyValueCache) -> PromptDataLoader:
    """Prompts that say which prefix they go on from."""
    return PromptDataLoader(
        loader().dataset, seq_len=None, diverge_idx=PREFIX, kv_cache=cache, batch_size=4, shuffle=False
    )


def with_cache(change: Callable[[Any], object] = lambda cache: None, n_ctx: int = 16) -> PatchableModel:
    inner = transformer(n_ctx=n_ctx)
    cache = prefix_cache(inner)
    change(cache)
    return patchable(inner, kv_caches=(cache,))


@pytest.mark.parametrize("method", ["acdc", "eap"])
def test_loader_and_model_of_one_prefix(method: str) -> None:
    model = with_cache()
    assert model.kv_caches is not None
    result = discover(model, behind(model.kv_caches[4]), method=method)
    assert result.decisions == discover(model, loader(), method=method).decisions


def test_a_grouped_model_has_the_cache_repeated() -> None:
    inner = transformer(n_key_value_heads=2)
    cache = prefix_cache(inner)
    result = discover(pahq.adapt(inner, kv_caches=[cache]), behind(cache), method="acdc")
    assert result.settings["engine"] == "incremental"


@pytest.mark.parametrize("method", ["acdc", "eap"])
def test_the_model_lacks_the_prefix(method: str) -> None:
    with refused(PromptError, "prefix"):
        discover(small_model(), behind(prefix_cache(transformer())), method=method)


def test_the_model_has_another_prefix() -> None:
    for other in (prefix_cache(transformer(), seed=8), prefix_cache(transformer(), length=2)):
        with refused(PromptError, "prefix"):
            discover(with_cache(), behind(other), method="acdc")


def test_prefix_and_prompts_together_must_fit_the_context() -> None:
    with refused(PromptError, "context of 8"):
        discover(with_cache(n_ctx=8), loader(), method="acdc")


def _keys(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    def apply(cache: Any) -> None:
        cache.entries[1].past_keys = change(cache.entries[1].past_keys)

    return apply


def _shorten_mask(cache: Any) -> None:
    cache.previous_attention_mask = cache.previous_attention_mask[:, :2]


BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "a layer too few": (lambda c: c.entries.pop(), "1 layers"),
    "a short mask": (_shorten_mask, "[4, 2, 4, 8]"),
    "other prompts": (_keys(lambda x: x[:3]), "[3, 3, 4, 8]"),
    "other heads": (_keys(lambda x: x[:, :, :3]), "[4, 3, 3, 8]"),
    "another width": (_keys(lambda x: x[..., :5]), "[4, 3, 4, 5]"),
    "another length": (_keys(lambda x: x[:, :2]), "[4, 2, 4, 8]"),
    "a wider type": (_keys(lambda x: x.double()), "torch.float64"),
    "NaN": (_keys(lambda x: x * torch.nan), "NaN"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_caches_that_are_not_whole(name: str) -> None:
    change, word = BROKEN[name]
    with refused(ModelError, word):
        discover(with_cache(change), loader(), method="acdc")


def test_what_is_no_cache() -> None:
    model = small_model()
    model.kv_caches = {4: None}  # type: ignore[assignment]
    with refused(ModelError, "NoneType"):
        discover(model, loader(), method="acdc")


def test_prefixes_of_two_lengths() -> None:
    inner = transformer()
    caches = (prefix_cache(inner), prefix_cache(inner, length=2, prompts=3))
    with refused(ModelError, "lengths"):
        discover(patchable(inner, kv_caches=caches), loader(), method="acdc")
