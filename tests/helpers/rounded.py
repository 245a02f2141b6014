"""The oracle of weight-only precision: the host model itself, with rounded weights written into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin import PrecisionConfig

FULL = PrecisionConfig(low="fp32", mlp="fp32", policy="full")
TOLERANCE = 1e-5

WEIGHT_ONLY = [
    PrecisionConfig(low="fp8_e4m3", mlp="fp8_e4m3", activations="high"),
    PrecisionConfig(low="fp8_e5m2", mlp="bf16", scale="none", activations="high"),
    PrecisionConfig(
        low="int8", mlp="int8", scale="head", activations="high", parts=("qkv", "output", "unembed")
    ),
    PrecisionConfig(low="fp16", mlp="int8", scale="tensor", activations="high"),
]


def off(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> float:
    """Largest difference of logits, relative to the largest logit."""
    expected = theirs.numpy()
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / max(1.0, np.abs(expected).max()))


@contextmanager
def rounded_weights(
    model: PatchableModel, precision: PrecisionConfig, head: tuple[int, int] | None = None
) -> Iterator[None]:
    """Inside the block the weights hold what their formats can, but for one head's.

    Models with grouped keys are not for this: a group has no weights of its own for one head.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    def write(weight: Tensor, part: str, layer: int | None, row: int | None = None) -> None:
        used = precision.format_of(part, layer)
        if not used.is_low:
            return
        kept.append((weight.data, weight.data.clone()))
        own = None if row is None else weight.data[row].clone()
        weight.data.copy_(used.quantise_weight(weight.data, precision.scale).dequantise())
        if row is not None:
            weight.data[row] = own  # type: ignore[assignment]

    try:
        for layer, block in enumerate(model.blocks):
            attn: Any = block.attn
            row = head[1] if head is not None and head[0] == layer else None
            for name in ("W_Q", "W_K", "W_V"):
                write(getattr(attn, name), "qkv", layer, row)
            write(attn.W_O, "output", layer, row)
            if not model.cfg.attn_only:
                for name in ("W_in", "W_gate", "W_out"):
                    if hasattr(block.mlp, name):
                        write(getattr(block.mlp, name), "mlp", layer)
        write(model.wrapped_model.unembed.W_U, "unembed", None)
        yield
    finally:
        for weight, before in kept:
            weight.copy_(before)


@torch.no_grad()
def patched_logits(model: PatchableModel, tokens: Tensor, outputs: Tensor, edges: set[Any]) -> Tensor:
    """The host's patched forward, ``[batch, pos, vocab]``."""
    from auto_circuit.utils.graph_utils import patch_mode

    for wrapper in model.dest_wrappers:
        wrapper.patch_mask.data.zero_()
    for edge in edges:
        edge.patch_mask(model).data[edge.patch_idx] = 1.0
    try:
        with patch_mode(model, outputs):
            return model(tokens)
    finally:
        for wrapper in model.dest_wrappers:
            wrapper.patch_mask.data.zero_()
