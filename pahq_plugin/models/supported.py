"""Tabulate what each engine, number format and export supports in a model.

Names are TransformerLens': kinds of positions (``cfg.positional_embedding_type``), classes of modules,
keys of activation functions. ``docs/models.md`` lists the families of models this covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Names = tuple[str, ...]


@dataclass(frozen=True)
class Supported:
    """What one way of running a model supports; empty names of modules or activations stand for any.

    ``norms_after_attention`` tells whether a norm may follow attention (Gemma 2).
    """

    positions: Names
    dtypes: tuple[torch.dtype, ...]
    norms_after_attention: bool = False
    norms: Names = ()
    attention: Names = ()
    mlps: Names = ()
    activations: Names = ()


FULL = (torch.float32, torch.float64)
COMPUTED = ("standard", "rotary", "alibi")
"""Positions computed here: learned, rotary and ALiBi."""

INCREMENTAL = Supported(positions=COMPUTED, dtypes=FULL)
"""The incremental engine, in full precision."""

LOW_PRECISION = Supported(
    positions=(*COMPUTED, "shortformer"),
    dtypes=(*FULL, torch.bfloat16, torch.float16),
    norms_after_attention=True,
    mlps=("MLP", "GatedMLP"),
)
"""Mixed precision of heads and MLPs, in the patching backend and in screened passes."""

GRAPH = Supported(
    positions=COMPUTED,
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    norms=("LayerNorm", "LayerNormPre", "RMSNorm", "RMSNormPre", "Identity"),
    attention=("Attention", "GroupedQueryAttention"),
    mlps=("MLP", "GatedMLP"),
    activations=("relu", "silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "solu"),
)
"""ONNX graphs, which compute in FP32."""
