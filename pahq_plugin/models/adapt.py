"""Adapt TransformerLens models so that patching an edge is a true intervention.

1. Flags: every head has its own inputs and its own output.
2. Keys and values that several heads share (grouped queries) are computed for each head, and KV caches
   are repeated to match.
3. If a norm follows attention (Gemma 2), each head's share of the normed output replaces its raw result.

The model computes the same function, up to rounding of sums in another order.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerKeyValueCache
from transformer_lens.past_key_value_caching import HookedTransformerKeyValueCacheEntry

from pahq_plugin.errors import ModelError
from pahq_plugin.host.types import OutputSlice, PatchableModel, patchable_model

log = logging.getLogger(__name__)


def adapt(
    model: HookedTransformer,
    *,
    slice_output: OutputSlice | None = "last_seq",
    seq_len: int | None = None,
    separate_qkv: bool = True,
    kv_caches: Sequence[HookedTransformerKeyValueCache] = (),
) -> PatchableModel:
    """Make ``model`` patchable: wrap it in the host's factorized model, ready for `discover`.

    One log line lists the changes, as a warning if they go beyond flags. With ``separate_qkv`` heads
    have split query, key and value inputs, without it one input each; a model with both would ignore
    patches into attention.

    Args:
        model: as TransformerLens loads it; changed in place.
        slice_output: the positions whose logits count; ``None`` for all.
        seq_len: number of tokens, for position-wise edges; ``None`` for edges of all positions.
        separate_qkv: whether a head's Q, K and V are separate destinations.
        kv_caches: frozen caches of common prefixes, one for each batch size; left unchanged.

    Raises:
        ModelError: not a `HookedTransformer`, or one whose edges cannot be patched faithfully; the
            model is then unchanged.
    """
    check_kind(model)
    cfg, normed = model.cfg, _post_norms(model)
    repeated = tuple(_repeated_cache(cfg, cache) for cache in kv_caches)
    flags, other = _set_flags(cfg, separate_qkv), []
    if cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention:
        cfg.ungroup_grouped_query_attention = True
        groups, heads = cfg.n_key_value_heads, cfg.n_heads
        other.append(f"keys and values of {groups} groups computed for each of {heads} heads")
    for block in normed:
        block.attn.hook_result = PostNormed(block.attn.hook_result, block.ln1_post)
        block.ln1_post = nn.Identity()
    if normed:
        other.append("norms after attention split over heads")
    if any(new is not old for new, old in zip(repeated, kv_caches, strict=True)):
        cfg.n_key_value_heads = cfg.n_heads  # TransformerLens checks caches against it
        other.append("KV caches repeated for each head")
    if flags or other:
        level = logging.WARNING if other else logging.INFO
        log.log(level, "%s made patchable: %s", cfg.model_name, "; ".join([*flags, *other]))
    patchable = patchable_model(
        model,
        factorized=True,
        slice_output=slice_output,
        seq_len=seq_len,
        separate_qkv=separate_qkv,
        kv_caches=repeated,
        device=next(model.parameters()).device,
    )
    patchable.eval()  # the host's wrappers are new modules, and those start in training mode
    return patchable


def check_kind(model: object) -> None:
    """Refuse all but an unquantised `HookedTransformer`, and a Mixtral model with folded norms."""
    if isinstance(model, PatchableModel):
        raise ModelError("model is a PatchableModel already; pass the HookedTransformer that it wraps")
    if not isinstance(model, HookedTransformer):
        raise ModelError(
            f"model is a {type(model).__name__}; the host factorizes only a HookedTransformer, not "
            "encoders such as BERT or encoder-decoders such as T5; convert a causal model of "
            "transformers with pahq.from_hugging_face(model)"
        )
    if model.cfg.load_in_4bit:
        raise ModelError("load_in_4bit is on; load the model unquantised")
    is_mixtral = model.cfg.original_architecture == "MixtralForCausalLM"
    if is_mixtral and model.cfg.normalization_type == "RMSPre":
        raise ModelError(
            "fold_ln=True makes TransformerLens drop the norm weights of a Mixtral model; "
            "load it with fold_ln=False"
        )


def _set_flags(cfg: Any, separate_qkv: bool) -> list[str]:
    """Set the flags that the host's patches need, and describe the changes."""
    flags = {
        "use_attn_result": True,
        "use_split_qkv_input": separate_qkv,
        "use_attn_in": not separate_qkv,
        "use_hook_mlp_in": not cfg.attn_only,
    }
    changed = [
        f"{flag} {'on' if on else 'off'}" for flag, on in flags.items() if getattr(cfg, flag) != on
    ]
    for flag, on in flags.items():
        setattr(cfg, flag, on)
    return changed


def _repeated_cache(cfg: Any, cache: HookedTransformerKeyValueCache) -> HookedTransformerKeyValueCache:
    """Repeat a cache's keys and values for every head, ``[batch, pos, head, d_head]``, if need be."""
    counts = {entry.past_keys.shape[2] for entry in cache.entries}
    if counts == {cfg.n_heads}:
        return cache
    if counts != {cfg.n_key_value_heads}:
        raise ModelError(
            f"a KV cache holds {', '.join(map(str, sorted(counts)))} heads, but the model has "
            f"{cfg.n_heads}; make the cache with this model"
        )
    times = cfg.n_heads // cfg.n_key_value_heads
    entries = [
        HookedTransformerKeyValueCacheEntry(
            entry.past_keys.repeat_interleave(times, dim=2),
            entry.past_values.repeat_interleave(times, dim=2),
            entry.frozen,
        )
        for entry in cache.entries
    ]
    return HookedTransformerKeyValueCache(entries, cache.previous_attention_mask, cache.frozen)


class PostNormed(nn.Module):
    """Replaces the ``hook_result`` of attention before a norm by what each head adds to the residual
    stream.

    The norm divides the sum of all heads by its size and multiplies by a weight. Given that size, it
    applies to every head's result separately, and the shares add up to the block's ``hook_attn_out``.
    The original ``hook`` is called with the shares.
    """

    def __init__(self, hook: nn.Module, norm: Any) -> None:
        super().__init__()
        self.hook = hook
        self.norm = norm

    def forward(self, result: Tensor) -> Tensor:
        """Map head results to their shares, both ``[batch, pos, head, d_model]``."""
        norm, dtype = self.norm, result.dtype
        high = torch.promote_types(dtype, torch.float32)
        total = result.sum(dim=2).to(high)
        size = norm.hook_scale((total.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt())
        return self.hook((result.to(high) / size[:, :, None]).to(dtype) * norm.w)


def _post_norms(model: HookedTransformer) -> list[Any]:
    """Return the blocks with a norm after attention; refuse norms that cannot be split over heads."""
    found: list[Any] = []
    if not model.cfg.use_normalization_before_and_after:
        return found
    block: Any
    for layer, block in enumerate(model.blocks):
        if isinstance(block.ln1_post, nn.Identity):
            continue
        kind = type(block.ln1_post).__name__
        if kind != "RMSNorm":
            raise ModelError(
                f"blocks.{layer}.ln1_post is a {kind}; only an RMSNorm can be split over heads"
            )
        if bool(block.attn.b_O.any()):
            raise ModelError(
                f"blocks.{layer}.attn.b_O is not 0 before blocks.{layer}.ln1_post: the normed bias "
                "differs between prompts and belongs to no head, so edges would not add up"
            )
        found.append(block)
    return found
