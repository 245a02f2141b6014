"""The oracle of attention and unembedding in few bits: a plain forward of TransformerLens whose operands
hooks round by a reference of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer

from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.small import KINDS, patchable, transformer

MODELS: dict[str, dict[str, Any]] = {
    **KINDS,
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"positional_embedding_type": "alibi"},
    "attention_only": {"attn_only": True},
    "grouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "soft_cap": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 5.0},
    "bidirectional": {"attention_dir": "bidirectional"},
}

MANTISSA = {"fp8_e4m3": 3, "bf16": 7}

LEAST_EXPONENT = {"fp8_e4m3": -6, "bf16": -126}

LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0}

Parts = Mapping[str, str]
"""Formats by part, ``{"blocks.1.scores": "int8", "unembed": "bf16"}``; all else stays as it is."""

Head = tuple[int, int]


def nearest(x: Tensor, name: str, axis: int) -> Tensor:
    """``x`` as a format holds it, with a scale for each slice along ``axis`` (BF16: none)."""
    scale = torch.ones_like(x.sum(dim=axis, keepdim=True))
    if name in LARGEST:
        scale = x.abs().amax(dim=axis, keepdim=True) / LARGEST[name]
        scale = scale.where(scale > 0, 1.0)
    codes, step = x / scale, torch.ones_like(x)
    if name in MANTISSA:
        exponent = (torch.frexp(codes).exponent - 1).clamp_min(LEAST_EXPONENT[name])
        step = torch.ldexp(step, exponent - MANTISSA[name])
    return (codes / step).round() * step * scale


def straight_through(
    x: Tensor, name: str, axis: int, head_axis: int = 2, high: int | None = None
) -> Tensor:
    """The same with the gradient of ``x``, and with one head as it was."""
    change = (nearest(x, name, axis) - x).detach()
    if high is not None:
        change.select(head_axis, high).zero_()
    return x + change


def oracle(
    model: HookedTransformer, parts: Parts, x: Tensor, high: Head | None = None, **keywords: Any
) -> Tensor:
    """Logits at the last position, of tokens or (with ``start_at_layer``) of a residual stream.

    Queries and keys ``[batch, pos, head, d_head]`` are rounded after rotation, along d_head; patterns
    ``[batch, head, query_pos, key_pos]`` and values ``[batch, pos, head, d_head]`` along the keys.
    """
    rotated = "rot_" if model.cfg.positional_embedding_type == "rotary" else ""
    operands = {
        "scores": [(f"hook_{rotated}q", -1, 2), (f"hook_{rotated}k", -1, 2)],
        "values": [("hook_pattern", -1, 1), ("hook_v", 1, 2)],
    }

    def rounding(name: str, axis: int, head_axis: int, own: int | None) -> Callable[..., Tensor]:
        return lambda value, hook: straight_through(value, name, axis, head_axis, own)

    hooks = []
    for part, name in parts.items():
        if part != "unembed":
            _, layer, which = part.split(".")
            own = high[1] if high is not None and high[0] == int(layer) else None
            hooks += [
                (f"blocks.{layer}.attn.{hook}", rounding(name, axis, head_axis, own))
                for hook, axis, head_axis in operands[which]
            ]
    if "unembed" in parts:
        name, model = parts["unembed"], deepcopy(model)
        model.unembed.W_U.data = nearest(model.unembed.W_U.data, name, 0)
        model.unembed.register_forward_pre_hook(
            lambda _, arguments: (straight_through(arguments[0], name, -1),)
        )
    return model.run_with_hooks(x, fwd_hooks=hooks, **keywords)[:, -1]


def by_block(part: str, name: str, blocks: int = 2) -> dict[str, str]:
    """One part in all blocks."""
    return {part: name} if part == "unembed" else {f"blocks.{i}.{part}": name for i in range(blocks)}


def only(low: str, *parts: Any, **changes: Any) -> PrecisionConfig:
    """``low`` for these parts alone."""
    return PrecisionConfig(**{"low": low, "mlp": "fp32", "parts": parts, **changes})


def both(kind: str = "layer_norm", **changes: Any) -> tuple[HookedTransformer, PatchableModel]:
    """The same transformer twice, plain and patchable."""
    arguments = {"dtype": torch.float64, **MODELS[kind], **changes}
    return transformer(**arguments), patchable(transformer(**arguments))
