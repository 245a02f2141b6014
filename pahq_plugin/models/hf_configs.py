"""Translate Hugging Face configurations to TransformerLens, one function for each architecture.

TransformerLens 2.15 looks up configurations by the names of published models. These functions read the
values, so any size, rotary base or window works. Values that `HookedTransformer` does not support are
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pahq_plugin.errors import ModelError

MOST_POSITIONS = 2048
"""Default limit of the context length: each block holds a mask of its square."""


@dataclass(frozen=True)
class Architecture:
    """How a Hugging Face class becomes a `HookedTransformer`.

    Attributes:
        arguments: maps its configuration to arguments of TransformerLens' configuration.
        family: names the module of `transformer_lens.pretrained.weight_conversions` with the function
            ``convert_FAMILY_weights``, which maps model and configuration to TransformerLens' weights.
    """

    arguments: Callable[[Any], dict[str, Any]]
    family: str


def _gpt2(config: Any) -> dict[str, Any]:
    _require(config, scale_attn_weights=True, add_cross_attention=False)
    return {
        "n_layers": config.n_layer,
        "n_heads": config.n_head,
        "d_model": config.n_embd,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _neox(config: Any) -> dict[str, Any]:
    _require(config, attention_bias=True)
    _plain_rotary(config)
    d_head = config.hidden_size // config.num_attention_heads
    return _sizes(config) | {
        "d_head": d_head,
        "eps": config.layer_norm_eps,
        "act_fn": config.hidden_act,
        "parallel_attn_mlp": config.use_parallel_residual,
        "positional_embedding_type": "rotary",
        "rotary_dim": int(d_head * config.rotary_pct),
        "rotary_base": config.rotary_emb_base,
        "normalization_type": "LN",
    }


def _llama(config: Any) -> dict[str, Any]:
    _require(config, attention_bias=False, mlp_bias=False)
    groups = config.num_key_value_heads
    return _gated(config) | {
        "n_key_value_heads": None if groups == config.num_attention_heads else groups,
        **_llama_rotary(config),
    }


def _mistral(config: Any) -> dict[str, Any]:
    _plain_rotary(config)
    kinds = ["sliding_attention"] * config.num_hidden_layers if config.sliding_window else None
    return _gated(config) | _windows(config, kinds)


def _qwen2(config: Any) -> dict[str, Any]:
    _plain_rotary(config)
    return _gated(config) | _windows(config, config.layer_types) | {"default_prepend_bos": False}


def _gemma(config: Any) -> dict[str, Any]:
    _require(config, attention_bias=False)
    _plain_rotary(config)
    activation = getattr(config, "hidden_activation", None)
    return _gated(config) | {"act_fn": activation or "gelu_pytorch_tanh"}


def _gemma2(config: Any) -> dict[str, Any]:
    if config.attn_logit_softcapping and getattr(config, "_attn_implementation", None) == "sdpa":
        raise ModelError(
            'attention scores have a soft cap, which attn_implementation="sdpa" ignores; load it '
            'with attn_implementation="eager"'
        )
    return _gemma(config) | {
        **_windows(config, config.layer_types),
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_normalization_before_and_after": True,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "GPT2LMHeadModel": Architecture(_gpt2, "gpt2"),
    "GPTNeoXForCausalLM": Architecture(_neox, "neox"),
    "LlamaForCausalLM": Architecture(_llama, "llama"),
    "MistralForCausalLM": Architecture(_mistral, "mistral"),
    "Qwen2ForCausalLM": Architecture(_qwen2, "qwen2"),
    "GemmaForCausalLM": Architecture(_gemma, "gemma"),
    "Gemma2ForCausalLM": Architecture(_gemma2, "gemma"),
}
"""Supported classes of `transformers`, by name."""


def hooked_arguments(name: str, config: Any) -> dict[str, Any]:
    """Return the arguments of TransformerLens' configuration for an architecture in `ARCHITECTURES`.

    Raises:
        ModelError: a value is missing, or `HookedTransformer` does not support it.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("the model is quantised (quantization_config); load it unquantised")
    try:
        arguments = ARCHITECTURES[name].arguments(config)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"the configuration of the {name} cannot be read: {error}") from error
    return arguments | {"d_vocab": config.vocab_size, "original_architecture": name}


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_model": config.hidden_size,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
    }


def _gated(config: Any) -> dict[str, Any]:
    """Return the arguments that Llama and its successors share."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _sizes(config) | {
        "d_head": d_head,
        "n_key_value_heads": config.num_key_value_heads,
        "eps": config.rms_norm_eps,
        "act_fn": getattr(config, "hidden_act", None),
        "gated_mlp": True,
        "final_rms": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_base": config.rope_theta,
        "normalization_type": "RMS",
    }


def _windows(config: Any, kinds: list[str] | None) -> dict[str, Any]:
    """Return the arguments for blocks with a sliding window."""
    if not kinds or "sliding_attention" not in kinds:
        return {}
    return {
        "use_local_attn": True,
        "window_size": config.sliding_window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in kinds],
    }


def _llama_rotary(config: Any) -> dict[str, Any]:
    """Return the arguments for Llama 3.1's rotary scaling, the only one in TransformerLens."""
    scaling = _rotary_scaling(config)
    if not scaling:
        return {}
    if scaling.get("rope_type") != "llama3":
        raise ModelError(
            f"rope_scaling has type {scaling.get('rope_type')!r}; only llama3 can be converted"
        )
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": scaling["factor"],
        "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
        "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
    }


def _rotary_scaling(config: Any) -> dict[str, Any]:
    """Return the scaling of rotary angles; empty for none."""
    scaling = getattr(config, "rope_scaling", None) or {}
    return {} if scaling.get("rope_type") == "default" else scaling


def _plain_rotary(config: Any) -> None:
    scaling = _rotary_scaling(config)
    if scaling:
        raise ModelError(
            f"rope_scaling is set ({scaling.get('rope_type')!r}); this architecture can be converted "
            "only without it"
        )


def _require(config: Any, **values: bool) -> None:
    for key, right in values.items():
        if bool(getattr(config, key, right)) != right:
            raise ModelError(
                f"{key} is {not right} in the model's configuration; only models with {key}={right} "
                "can be converted"
            )
