"""Load transformers: from the hub, from folders, from Tracr, or small random ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pahq_plugin.errors import ModelError, ProblemError
from pahq_plugin.host.types import PatchableModel
from pahq_plugin.models.adapt import adapt
from pahq_plugin.models.hf_folder import check_report, load_with_report
from pahq_plugin.models.hugging_face import hooked_model
from pahq_plugin.system.torch_state import random_state_kept

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


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
        device: where to build it.

    Raises:
        ModelError: parameters are missing, left over, or of a wrong shape.
    """
    from transformer_lens import HookedTransformer

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
    from transformer_lens import HookedTransformer, loading_from_pretrained

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
    """Load the hub's model through `transformers`, and check its report about weights.

    TransformerLens does not check: weights missing from a damaged cache would be random.

    Returns:
        The model; ``None`` if TransformerLens reads its weights from its own files.

    Raises:
        ModelError: weights are missing or left over.
    """
    import transformers
    from transformer_lens import loading_from_pretrained as loading

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
    from transformer_lens import loading_from_pretrained

    try:
        loading_from_pretrained.get_official_model_name(name)
    except ValueError:
        return True
    return False


@random_state_kept()
def folder_model(folder: str | Path, device: str = "cpu") -> HookedTransformer:
    """Load a Hugging Face model from a folder, processed as in `hub_model`, with its tokenizer if any.

    Raises:
        ModelError: the folder does not exist, or the model cannot be converted.
    """
    return hooked_model(folder, process=True, device=device)


def is_stored(name: str | Path) -> bool:
    """Return whether a folder holds a model that `save_model` wrote."""
    from pahq_plugin.models.record import stored_name

    return stored_name(name) is not None


def any_model(name: str | Path, device: str = "cpu") -> HookedTransformer:
    """Load a model from a folder, stored (then on the CPU) or Hugging Face's, or by its hub name.

    Raises:
        ModelError: the folder does not hold a model, or the model is damaged.
        ProblemError: see `hub_model`.
    """
    from pahq_plugin.models.on_disk import open_model

    if is_stored(name):
        return open_model(name)
    return folder_model(name, device) if is_folder(name) else hub_model(str(name), device)


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
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = like.cfg
    groups = 1 if cfg.n_key_value_heads is None else cfg.n_heads // cfg.n_key_value_heads
    sizes = TINY | {"n_heads": max(2, 2 * groups), "d_vocab_out": TINY["d_vocab"]}
    sizes["n_key_value_heads"] = None if cfg.n_key_value_heads is None else 2
    sizes["rotary_dim"] = None
    if cfg.rotary_dim is not None:
        sizes["rotary_dim"] = TINY["d_head"] if cfg.rotary_dim == cfg.d_head else TINY["d_head"] // 2
    sizes["attn_types"] = None if cfg.attn_types is None else cfg.attn_types[: TINY["n_layers"]]
    sizes["window_size"] = None if cfg.window_size is None else 3
    sizes["d_mlp"] = None if cfg.attn_only else TINY["d_mlp"]
    record = {**cfg.to_dict(), **sizes, "device": "cpu", "seed": None, "dtype": torch.float32}
    record |= {"tokenizer_name": None, "n_params": None, "n_devices": 1, "load_in_4bit": False}
    config = HookedTransformerConfig.from_dict(record)
    draw = torch.Generator().manual_seed(seed)
    model = _frozen(HookedTransformer(config))
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
