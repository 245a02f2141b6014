"""Small random models of the families that people load, with the flags of the published ones.

TransformerLens itself turns the published configuration of a model into its own flags
(`get_pretrained_model_config`), with the options of `hub_model`; only what it would fetch from the
network is given here instead. Then the sizes are shrunk and the weights drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import transformers
from auto_circuit.data import PromptDataLoader, PromptDataset
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading

from tests.helpers.architectures import fill

VOCABULARY = 30
LENGTH = 4
WINDOW = 3
D_HEAD = 8


@dataclass(frozen=True)
class Family:
    """One published model and how it is drawn.

    Attributes:
        name: in TransformerLens.
        config: what the hub would answer; ``None`` where TransformerLens asks nothing.
        biases: names that parameters with biases contain; all others are 0, as published.
        folded: whether `hub_model` folds norms into the weights behind them.
    """

    name: str
    config: Callable[[], Any] | None = None
    biases: tuple[str, ...] = ("b_", ".b")
    folded: bool = True


def _hub(kind: str, architecture: str, **values: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, kind)(architectures=[architecture], **values)


def _json(**values: Any) -> Callable[[], Any]:
    sizes = {"d_model": 512, "n_layers": 2, "d_mlp": 2048, "d_head": 64, "n_heads": 8, "n_ctx": 1024}
    return lambda: {**sizes, "d_vocab": 48262, **values}


NEOX: dict[str, Any] = {
    "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 6, "intermediate_size": 2048,
    "vocab_size": 50304, "rotary_pct": 0.25,
}  # fmt: skip
PHI2: dict[str, Any] = {
    "hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 10240,
    "partial_rotary_factor": 0.4, "hidden_act": "gelu_new",
}  # fmt: skip
QWEN2: dict[str, Any] = {
    "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24,
    "intermediate_size": 4864, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "gpt2": Family("gpt2", _hub("GPT2Config", "GPT2LMHeadModel", n_ctx=1024)),
    "stanford-gpt2": Family(
        "stanford-crfm/alias-gpt2-small-x21",
        _hub("GPT2Config", "GPT2LMHeadModel", n_ctx=1024, scale_attn_by_inverse_layer_idx=True),
    ),
    "gpt-neo": Family("gpt-neo-125M", _hub("GPTNeoConfig", "GPTNeoForCausalLM")),
    "gpt-j": Family("gpt-j-6B", _hub("GPTJConfig", "GPTJForCausalLM", rotary_dim=64)),
    "pythia": Family("pythia-70m", _hub("GPTNeoXConfig", "GPTNeoXForCausalLM", **NEOX)),
    "opt": Family("opt-125m", _hub("OPTConfig", "OPTForCausalLM")),
    "bloom": Family("bloom-560m", _hub("BloomConfig", "BloomForCausalLM", n_layer=24, n_head=16)),
    "phi-2": Family("phi-2", _hub("PhiConfig", "PhiForCausalLM", **PHI2)),
    "phi-3": Family("phi-3", _hub("Phi3Config", "Phi3ForCausalLM"), biases=()),
    "llama-2": Family("Llama-2-7b", biases=()),
    "llama-3": Family("meta-llama/Meta-Llama-3-8B", biases=()),
    "llama-3.2": Family("meta-llama/Llama-3.2-1B", biases=()),
    "mistral": Family("mistral-7b", _hub("MistralConfig", "MistralForCausalLM", head_dim=128), ()),
    "mixtral": Family("mixtral", _hub("MixtralConfig", "MixtralForCausalLM"), (), False),
    "qwen": Family(
        "qwen-1.8b",
        lambda: transformers.PretrainedConfig(
            architectures=["QWenLMHeadModel"], hidden_size=2048, num_attention_heads=16,
            vocab_size=151936, intermediate_size=11008, num_hidden_layers=24,
            layer_norm_epsilon=1e-6, kv_channels=128,
            scale_attn_weights=True, initializer_range=0.02,
        ),
        biases=("b_Q", "b_K", "b_V"),
    ),
    "qwen-2": Family(
        "Qwen/Qwen2-0.5B", _hub("Qwen2Config", "Qwen2ForCausalLM", **QWEN2), ("b_Q", "b_K", "b_V")
    ),
    "gemma": Family("google/gemma-2b", biases=()),
    "gemma-7b": Family("google/gemma-7b", biases=()),
    "gemma-2": Family("google/gemma-2-2b", biases=()),
    "attn-only": Family("attn-only-2l", _json(attn_only=True, act_fn="relu", normalization="LN")),
    "solu": Family("solu-2l", _json(attn_only=False, act_fn="solu_ln", normalization="LN")),
    "shortformer": Family(
        "attn-only-2l-shortformer-6b-big-lr",
        _json(attn_only=True, act_fn="relu", normalization="LN", shortformer_pos=True),
    ),
}  # fmt: skip
"""Every family that TransformerLens 2.15 makes a `HookedTransformer` of, one model each or two."""


def published(family: Family) -> HookedTransformerConfig:
    """TransformerLens' own configuration of the published model, without a network."""
    answer = family.config or (lambda: _asked(family.name))
    with (
        mock.patch.object(loading.AutoConfig, "from_pretrained", lambda *_, **__: answer()),
        mock.patch.object(loading.utils, "download_file_from_hf", lambda *_, **__: answer()),
    ):
        return loading.get_pretrained_model_config(
            family.name, fold_ln=family.folded, device="cpu", dtype=torch.float32
        )


def _asked(name: str) -> Any:
    raise AssertionError(f"TransformerLens asked the hub for {name}")


def shrunk(config: HookedTransformerConfig, dtype: torch.dtype) -> HookedTransformerConfig:
    """The same flags at small sizes: 2 layers, 2 heads or 4 of which some share keys and values."""
    given = dict(config.to_dict())
    grouped = given["n_key_value_heads"]
    n_heads = 2 if grouped is None else 4
    small: dict[str, Any] = {
        "n_layers": 2, "n_heads": n_heads, "d_head": D_HEAD, "d_model": 20, "n_ctx": LENGTH + 3,
        "d_vocab": VOCABULARY, "d_vocab_out": VOCABULARY, "d_mlp": None if given["attn_only"] else 24,
        "dtype": dtype, "seed": 0, "n_params": None, "tokenizer_name": None,
        "initializer_range": -1.0,
    }  # fmt: skip
    if given["attn_scale"] == given["d_head"] ** 0.5:
        small["attn_scale"] = -1.0  # the default, to be worked out again
    if grouped is not None:
        small["n_key_value_heads"] = {1: 1, given["n_heads"]: n_heads}.get(grouped, 2)
    if given["rotary_dim"] is not None:
        share = given["rotary_dim"] / given["d_head"]
        small["rotary_dim"] = max(2, 2 * round(share * D_HEAD / 2))
    if given["attn_types"] is not None:
        small["attn_types"] = given["attn_types"][:2]
    if given["window_size"] is not None:
        small["window_size"] = WINDOW
    if given["num_experts"] is not None:
        small |= {"num_experts": 4, "experts_per_token": 2}
    return HookedTransformerConfig.from_dict({**given, **small})


def family_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> HookedTransformer:
    """A small model of a family as `HookedTransformer.from_pretrained` gives it: all flags off."""
    family = FAMILIES[name]
    model = HookedTransformer(shrunk(published(family), dtype)).eval()
    fill(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            leaf = key.rsplit(".", 1)[-1].lstrip("_")
            if leaf.startswith("b") and not any(part in f".{leaf}" for part in family.biases):
                parameter.zero_()
    return model.requires_grad_(False)


def tokens(seed: int = 0, prompts: int = 2, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Clean and corrupt token ids ``[prompt, pos]`` that differ from position 1 on."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCABULARY, (prompts, length), generator=draw)
    shift = torch.randint(1, VOCABULARY, (prompts, length), generator=draw)
    shift[:, 0] = 0
    return clean, (clean + shift) % VOCABULARY


def family_loader(positional: bool = False, seed: int = 0) -> PromptDataLoader:
    """Two batches of two prompts."""
    clean, corrupt = tokens(seed, prompts=4)
    ids = [torch.tensor([i]) for i in range(8)]
    dataset = PromptDataset(clean, corrupt, ids[:4], ids[4:])
    return PromptDataLoader(
        dataset, seq_len=LENGTH if positional else None, diverge_idx=0, batch_size=2, shuffle=False
    )
