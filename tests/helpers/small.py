"""A small random transformer made patchable, prompts for it, and what its attention computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

LENGTH = 6
VOCABULARY = 40

KINDS: dict[str, dict[str, Any]] = {
    "layer_norm": {"normalization_type": "LN", "act_fn": "gelu"},
    "rotary_gated": {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "parallel": {"normalization_type": None, "act_fn": "relu", "parallel_attn_mlp": True},
}
"""Three architectures that differ in norm, positions, MLP and order of attention and MLP."""

OTHER_KINDS: list[dict[str, Any]] = [
    {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    {"positional_embedding_type": "alibi"},
    {"attention_dir": "bidirectional"},
    {"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 5.0},
    {"scale_attn_by_inverse_layer_idx": True, "attn_only": True},
    {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]},
    {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True},
    {"act_fn": "solu_ln"},
]
"""Changes of the default one, each another kind of attention, MLP or logits."""


def transformer(seed: int = 0, separate_qkv: bool = True, **changes: Any) -> HookedTransformer:
    """2 layers x 4 heads x d_model 32 by default, all weights random, biases too."""
    arguments: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 32,
        "n_ctx": 16,
        "d_head": 8,
        "n_heads": 4,
        "d_mlp": 64,
        "d_vocab": VOCABULARY,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "device": "cpu",
        **changes,
    }
    model = HookedTransformer(HookedTransformerConfig(**arguments))
    model.cfg.use_attn_result = True
    model.cfg.use_split_qkv_input = separate_qkv
    model.cfg.use_attn_in = not separate_qkv
    model.cfg.use_hook_mlp_in = not model.cfg.attn_only
    randomise(model, seed)
    model.eval()
    return model.requires_grad_(False)


def randomise(model: HookedTransformer, seed: int) -> None:
    """Weights of variance 1 / fan-in, small biases, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith((".w", "ln_final.w")):
            noise = 1 + 0.1 * noise
        elif ".b" in name:
            noise = 0.1 * noise
        elif parameter.ndim > 1 and not name.startswith(("embed", "pos_embed")):
            noise = noise / parameter.shape[-2] ** 0.5
        parameter.data.copy_(noise)


def patchable(
    model: HookedTransformer, *, separate_qkv: bool = True, **arguments: Any
) -> PatchableModel:
    """The host's factorized model, whose output is that of the last position."""
    return patchable_model(
        model, factorized=True, slice_output="last_seq", separate_qkv=separate_qkv,
        **{"device": torch.device(model.cfg.device), **arguments},
    )  # fmt: skip


def small_model(kind: str = "layer_norm", seed: int = 0, **changes: Any) -> PatchableModel:
    """A patchable model of one of the `KINDS`."""
    return patchable(transformer(seed, **{**KINDS[kind], **changes}))


def tokens(seed: int = 0, prompts: int = 4, length: int = LENGTH) -> Tensor:
    """Random token ids ``[prompt, pos]``."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, VOCABULARY, (prompts, length), generator=generator)


def loader(seed: int = 0, prompts: int = 4) -> PromptDataLoader:
    """One batch of random prompt pairs that differ from position 1 on."""
    clean, corrupt = tokens(seed, prompts), tokens(seed + 1, prompts)
    corrupt[:, 0] = clean[:, 0]
    answers = [torch.tensor([i % VOCABULARY]) for i in range(prompts)]
    wrong = [torch.tensor([(i + 7) % VOCABULARY]) for i in range(prompts)]
    dataset = PromptDataset(clean, corrupt, answers, wrong)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=prompts, shuffle=False)


def activations(
    model: PatchableModel, names: Sequence[str], *arguments: Any, **keywords: Any
) -> dict[str, Tensor]:
    """Activations of the hook points ``names`` in one forward of ``model``."""
    with torch.no_grad():
        _, cache = model.run_with_cache(
            *arguments,
            names_filter=lambda name: name in names,
            return_cache_object=False,
            **keywords,
        )
    return {name: cache[name].clone() for name in names}


def attention_names(layer: int, parts: str = "qkv") -> list[str]:
    """Hook points of queries, keys and values of one layer."""
    return [f"blocks.{layer}.attn.hook_{part}" for part in parts]


def signal_to_noise(reference: Tensor, value: Tensor) -> float:
    """Signal-to-noise ratio in dB; infinite where both are equal."""
    signal = reference.double().square().sum()
    noise = (value.double() - reference.double()).square().sum()
    return float(10 * torch.log10(signal / noise))


def logits(model: PatchableModel, prompts: Tensor) -> Tensor:
    """Output of one plain forward, without gradients."""
    with torch.no_grad():
        return model(prompts)
