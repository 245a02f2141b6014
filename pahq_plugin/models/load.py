"""Load transformers: from the hub, from folders, from Tracr, or small random ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained

from pahq_plugin.errors import ModelError, ProblemError
from pahq_plugin.host.types import PatchableModel
from pahq_plugin.models.adapt import adapt
from pahq_plugin.models.hf_folder import check_report, load_with_report
from pahq_plugin.models.hugging_face import hooked_model
from pahq_plugin.models.on_disk import open_model
from pahq_plugin.models.record import stored_name
from pahq_plugin.system.torch_state import random_state_kept

OWN_FORMATS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Hub owners whose models TransformerLens reads from its own files."""


@random_state_kept()
def language_model(
    config: dict[str, Any], state: dict[str, Tensor], device: str = "cpu"
) -> HookedTransformer:
    """Build a transformer with the given weights, in evaluation mode, without gradients.

    Args:
        config: arguments of TransformerLens' ``HookedTransformerConfig``.
        state: every parameter by its TransformerLens name.

    Raises:
        ModelError: parameters are missing, left over, or of a wrong shape.
    """
    model = HookedTransformer({**config, "device": device})
    expected = dict(model.named_parameters())
    wrong = sorted(expected.keys() ^ state.keys()) or [
        name for name, value in state.items() if value.shape != expected[name].shape
    ]
    if wrong:
        raise ModelError(f"the weights do not fit the configuration: {', '.join(wrong[:3])}")
    model.load_state_dict(state, strict=False)  # buffers, such as masks, are the model's own
    return _frozen(model)


@random_state_kept()
def hub_model(name: str, device: str = "cpu") -> HookedTransformer:
    """Load a pretrained model by its TransformerLens name, processed as in the host's own tasks.

    LayerNorm is folded, writing weights and unembedding are centred; float32. Norms of models with
    experts are not folded: TransformerLens would drop their weights.

    Raises:
        ProblemError: the name is unknown, or neither the hub nor a local cache has the model.
        ModelError: weights are missing or left over.
    """
    try:
        official = loading_from_pretrained.get_official_model_name(name)
    except ValueError as error:
        raise ProblemError(
            f"no model {name!r}; give a name from TransformerLens' list, such as gpt2 or "
            "pythia-70m (transformer_lens.loading.OFFICIAL_MODEL_NAMES), or a folder that holds a "
            "Hugging Face model"
        ) from error
    if Path(official).is_dir():
        raise ProblemError(
            f"{name!r} names both the hub's {official} and a folder here; pass ./{official} for the "
            "folder, or start in another folder for the hub's model"
        )
    try:
        model = HookedTransformer.from_pretrained(
            name,
            hf_model=_hub_weights(official),
            fold_ln="mixtral" not in official.lower(),
            center_writing_weights=True,
            center_unembed=True,
            device=device,
        )
    except (OSError, ValueError) as error:
        raise ProblemError(
            f"the model {name!r} could not be loaded ({type(error).__name__}): {_hub_advice()}"
        ) from error
    return _frozen(model)


def _hub_weights(official: str) -> Any:
    """Load the hub's model through `transformers`; ``None`` if TransformerLens has its own files of it.

    TransformerLens does not check the report about weights: any missing from a damaged cache would be
    random.
    """
    loading = loading_from_pretrained
    others = (*OWN_FORMATS, *loading.NON_HF_HOSTED_MODEL_NAMES, *loading.NEED_REMOTE_CODE_MODELS)
    if official.startswith(others) or any(kind in official.lower() for kind in ("bert", "t5")):
        return None
    model, report = load_with_report(transformers.AutoModelForCausalLM, official, torch.float32)
    check_report(official, report)
    return model


def is_folder(name: str | Path) -> bool:
    """Return whether a model names a folder: a path, or an existing folder that is not a hub name."""
    if isinstance(name, Path) or name.startswith((".", "~", os.sep)):
        return True
    if not Path(name).is_dir():
        return False
    try:
        loading_from_pretrained.get_official_model_name(name)
    except ValueError:
        return True
    return False


def any_model(name: str | Path, device: str = "cpu") -> HookedTransformer:
    """Load a model from a folder, stored (then on the CPU) or Hugging Face's, or by its hub name.

    Hugging Face's models are processed as in `hub_model`.

    Raises:
        ModelError: the folder does not hold a model, or the model is damaged.
        ProblemError: see `hub_model`.
    """
    if stored_name(name) is not None:
        return open_model(name)
    if not is_folder(name):
        return hub_model(str(name), device)
    with random_state_kept():
        return hooked_model(name, process=True, device=device)


@random_state_kept()
def tracr_model(key: Literal["reverse", "xproportion"], device: str = "cpu") -> HookedTransformer:
    """Compile a transformer with Tracr, through the host."""
    from auto_circuit.model_utils.tracr_model_utils import get_tracr_model

    with _jax_on_cpu():
        return _frozen(get_tracr_model(key, device)[0])


@contextmanager
def _jax_on_cpu() -> Iterator[None]:
    """Restrict JAX to the CPU while Tracr compiles: it would take and keep 3/4 of a GPU's memory.

    If JAX has not run yet in this process, it does not find a GPU afterwards either, unless
    ``JAX_PLATFORMS`` names one.
    """
    import jax

    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", before or "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


TINY = {"n_layers": 2, "d_head": 8, "d_model": 16, "d_mlp": 24, "n_ctx": 8, "d_vocab": 23}
"""Sizes of a model that is fast even for the slowest reference."""


@random_state_kept()
def tiny_model(like: PatchableModel, seed: int) -> PatchableModel:
    """Make a small random model of the same kind: norms, positions, MLPs, grouping of heads."""
    cfg = like.cfg
    record = {**cfg.to_dict(), **TINY, "n_heads": 2, "d_vocab_out": TINY["d_vocab"]}
    record |= {"device": "cpu", "seed": None, "dtype": torch.float32, "tokenizer_name": None}
    record |= {"n_params": None, "n_devices": 1, "load_in_4bit": False}
    if cfg.n_key_value_heads is not None:
        groups = cfg.n_heads // cfg.n_key_value_heads
        record |= {"n_heads": 2 * groups, "n_key_value_heads": 2}
    if cfg.rotary_dim is not None:
        record["rotary_dim"] = TINY["d_head"] // (1 if cfg.rotary_dim == cfg.d_head else 2)
    if cfg.attn_types is not None:
        record["attn_types"] = cfg.attn_types[: TINY["n_layers"]]
    if cfg.window_size is not None:
        record["window_size"] = 3
    if cfg.attn_only:
        record["d_mlp"] = None
    draw = torch.Generator().manual_seed(seed)
    model = _frozen(HookedTransformer(HookedTransformerConfig.from_dict(record)))
    for name, parameter in sorted(model.named_parameters()):
        size = 1.0 if name.endswith(("W_E", "W_pos")) else 0.3
        value = size * torch.randn(parameter.shape, generator=draw)
        parameter.copy_(value + 1 if name.endswith(".w") else value)
    return adapt(model, slice_output=None, separate_qkv=bool(like.separate_qkv))


def _frozen(model: HookedTransformer) -> HookedTransformer:
    model.eval()
    model.requires_grad_(False)
    return model


def _hub_advice() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the local cache lacks it; unset it, or fill the cache first"
    return "connect to the Hugging Face hub, or fill its local cache and set HF_HUB_OFFLINE=1"
