"""Small random Hugging Face models, made from their configurations; no hub is asked."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 12}
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-wide": (
        "GPT2",
        GPT2 | {"n_inner": 40, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    ),
    "pythia": ("GPTNeoX", SIZES | {"rotary_pct": 0.5, "rotary_emb_base": 500}),
    "neox-sequential": ("GPTNeoX", SIZES | {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "llama": ("Llama", SIZES | {"rope_theta": 500.0}),
    "llama-3.1": ("Llama", GROUPED | {"rope_scaling": SCALED, "tie_word_embeddings": True}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 5, "rope_theta": 1e6}),
    "mistral-whole": ("Mistral", GROUPED | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES | {"num_key_value_heads": 2, "rope_theta": 1e6}),
    "qwen2-window": (
        "Qwen2",
        SIZES | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5,
                 "max_window_layers": 1},
    ),
    "gemma": ("Gemma", GROUPED | {"num_key_value_heads": 1}),
    "gemma-2": (
        "Gemma2",
        GROUPED | {"sliding_window": 5, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
                   "final_logit_softcapping": 3.0},
    ),
}  # fmt: skip
"""Class prefix and configuration: every architecture that can be converted, one model or two."""


def hf_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with weights large enough that heads, positions and norms matter."""
    kind, values = MODELS[name]
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(
        **values, **changes, attn_implementation="eager", bos_token_id=1, eos_token_id=1
    )
    model: nn.Module = getattr(transformers, kind + suffix)(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim > 1 and "embed" not in parameter_name and "wte" not in parameter_name:
                noise = noise / parameter.shape[-1] ** 0.5
            elif parameter.ndim == 1:
                noise = 0.2 * noise + ("norm" in parameter_name or "ln_" in parameter_name)
            parameter.copy_(noise)
    return model.to(dtype).eval()
