"""Check a host model before anything is changed, and hash its weights and configuration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import MISSING, fields
from types import FunctionType
from typing import Any

import torch
from auto_circuit.types import PatchWrapper
from torch import nn
from transformer_lens import HookedTransformerConfig, HookedTransformerKeyValueCache

from pahq_plugin.errors import ModelError
from pahq_plugin.host import PatchableModel, PromptDataLoader
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.labels import edge_label
from pahq_plugin.models.changes import changes, plain_name
from pahq_plugin.system.fingerprint import fingerprint
from pahq_plugin.system.mapped import let_go_if_unchanged

MACHINE_FIELDS = ("device", "n_devices", "seed", "init_weights", "trust_remote_code", "tokenizer_name")
"""Configuration fields that do not describe the model, or that a file must not set."""

UNCOMPUTED_FIELDS = (
    "model_name", "original_architecture", "n_params", "n_ctx", "n_key_value_heads", "use_attn_result",
    "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in", "use_hook_tokens",
    "ungroup_grouped_query_attention", "tokenizer_prepends_bos", "default_prepend_bos", "init_mode",
    "initializer_range", "from_checkpoint", "checkpoint_index", "checkpoint_label_type",
    "checkpoint_value",
)  # fmt: skip
"""Configuration fields without influence on a model's output, or set by `adapt`."""


def check_patchable(model: object) -> PatchableModel:
    """Return ``model`` if its edges can be patched faithfully.

    Raises:
        ModelError: a flag or property is wrong; the message names it and what would be right.
    """
    if not isinstance(model, PatchableModel):
        raise ModelError(
            f"model is a {type(model).__name__}, not a PatchableModel; {_instead_of(model)}"
        )
    if not model.is_factorized:
        raise ModelError("model is not factorized; call patchable_model(..., factorized=True)")
    if model.is_transformer:
        _check_transformer(model)
    _check_wrapped_once(model)
    check_finite(model)
    return model


def _check_wrapped_once(model: PatchableModel) -> None:
    """Refuse a model that was made patchable again: the host would find the later model's masks."""
    modules = dict(model.wrapped_model.named_modules(remove_duplicate=False))
    found = ((wrapper, modules.get(wrapper.module_name)) for wrapper in model.wrappers)
    if any(isinstance(there, PatchWrapper) and there is not wrapper for wrapper, there in found):
        raise ModelError(
            "the wrapped model was made patchable again later; use the newer PatchableModel, or make "
            "this one from a copy.deepcopy"
        )


def _instead_of(model: object) -> str:
    """Say what to pass instead of a value that is not a host model."""
    ancestors = {kind.__name__ for kind in type(model).__mro__}
    if "HookedTransformer" in ancestors:
        return "pass pahq_plugin.adapt(model)"
    if "PreTrainedModel" in ancestors:
        return "pass pahq_plugin.from_hugging_face(model)"
    if isinstance(getattr(model, "model", None), PatchableModel):
        return "pass its .model"
    if isinstance(model, str):
        return f"load one, for example load_problem('ioi', model={model!r}).model"
    if isinstance(model, PromptDataLoader):
        return "pass the model first, then the loader"
    return "wrap it with auto_circuit.utils.graph_utils.patchable_model(...)"


def _check_devices(model: PatchableModel) -> None:
    """Refuse a model whose weights, masks and ``cfg.device`` are not on one device."""
    weights = next(model.wrapped_model.parameters()).device
    try:
        named = torch.device(model.cfg.device)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"cfg.device={getattr(model.cfg, 'device', None)!r} is not a device; set one, such as 'cpu'"
        ) from error
    if (named.type, named.index or 0) != (weights.type, weights.index or 0):
        raise ModelError(
            f"the weights are on {weights}, but cfg.device is {named}, where activations would go; call "
            f"model.wrapped_model.to('{weights}'), which updates cfg.device, too"
        )
    masks = {mask.device for mask in model.patch_masks.values()} - {weights}
    if masks:
        raise ModelError(
            f"the patch masks are on {masks.pop()}, the weights on {weights}; call "
            f"model.wrapped_model.to('{weights}'), or pass that device to patchable_model"
        )


def _check_transformer(model: PatchableModel) -> None:
    cfg = model.cfg
    if cfg.n_devices == 1:
        _check_devices(model)
    if getattr(cfg, "load_in_4bit", False):
        raise ModelError("load_in_4bit is on; load the model unquantised")
    if not cfg.use_attn_result:
        raise ModelError("use_attn_result is off; call model.set_use_attn_result(True) first")
    if model.separate_qkv and not cfg.use_split_qkv_input:
        raise ModelError("use_split_qkv_input is off; call model.set_use_split_qkv_input(True)")
    if not model.separate_qkv and cfg.use_split_qkv_input:
        raise ModelError(
            "use_split_qkv_input is on while separate_qkv=False: patches into attention would be "
            "ignored; call model.set_use_split_qkv_input(False) or pass separate_qkv=True"
        )
    if not model.separate_qkv and not cfg.use_attn_in:
        raise ModelError("use_attn_in is off; call model.set_use_attn_in(True) first")
    if not cfg.attn_only and not cfg.use_hook_mlp_in:
        raise ModelError("use_hook_mlp_in is off; call model.set_use_hook_mlp_in(True) first")
    if cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention:
        raise ModelError(
            "keys and values are grouped (n_key_value_heads is set), so heads lack separate inputs; "
            "call model.set_ungroup_grouped_query_attention(True) first, or make the model patchable "
            "with pahq_plugin.adapt"
        )
    unmoved = [b for b in model.blocks if not isinstance(getattr(b, "ln1_post", None), nn.Identity)]
    if cfg.use_normalization_before_and_after and unmoved:
        raise ModelError(
            "use_normalization_before_and_after is on (a post-norm model such as Gemma 2): hook_result "
            "is not what a head adds to the residual stream, so edges would be wrong; make the model "
            "patchable with pahq_plugin.adapt"
        )
    _check_experts(model)
    _check_configuration(model)
    _check_caches(model)


def _check_experts(model: PatchableModel) -> None:
    """Refuse MLPs in another dtype than attention: TransformerLens makes experts in float32."""
    for layer, block in enumerate(model.blocks):
        own = None if model.cfg.attn_only else next(iter(block.mlp.parameters()), None)
        if own is not None and own.dtype != block.attn.W_O.dtype:
            raise ModelError(
                f"blocks.{layer}.mlp is in {own.dtype}, blocks.{layer}.attn in {block.attn.W_O.dtype}; "
                "call model.wrapped_model.to(torch.float32) first"
            )


def _check_configuration(model: PatchableModel) -> None:
    """Refuse a configuration that was changed after the model was made patchable."""
    cfg, blocks = model.cfg, list(model.blocks)
    if cfg.n_layers != len(blocks) or any(cfg.attn_only == hasattr(b, "mlp") for b in blocks):
        raise ModelError(
            f"cfg says n_layers={cfg.n_layers}, attn_only={cfg.attn_only}, but the {len(blocks)} blocks "
            "of the model differ in kind or number; do not change cfg, make another model"
        )
    inner: Any = model.wrapped_model
    words = getattr(inner.unembed, "W_U", None)
    sizes = {tuple(block.attn.W_Q.shape) for block in blocks if hasattr(block.attn, "W_Q")}
    if sizes - {(cfg.n_heads, cfg.d_model, cfg.d_head)} or (
        words is not None and words.shape[1] != cfg.d_vocab_out
    ):
        raise ModelError(
            f"cfg says n_heads={cfg.n_heads}, d_head={cfg.d_head}, d_vocab_out={cfg.d_vocab_out}, but "
            "the weights have other sizes; do not change cfg, make another model"
        )
    if len({id(block.attn) for block in blocks}) < len(blocks):
        raise ModelError(
            "blocks share an attention module, so edges into one block patch the other, too; give each "
            "block its own module (parameters may be shared)"
        )
    layers = {node.name: node.layer for node in model.srcs}
    if not cfg.attn_only and cfg.parallel_attn_mlp != (layers["A0.0"] == layers["MLP 0"]):
        raise ModelError(
            f"cfg.parallel_attn_mlp={cfg.parallel_attn_mlp} was changed after the model was made "
            "patchable; set it before calling pahq_plugin.adapt"
        )
    for name, parameter in weight_parameters(model):
        if parameter.is_floating_point() and parameter.dtype != cfg.dtype:
            raise ModelError(
                f"weights of {name} are in {parameter.dtype}, cfg.dtype is {cfg.dtype}; convert with "
                "model.wrapped_model.to(dtype), which changes both"
            )


def _check_caches(model: PatchableModel) -> None:
    caches = model.kv_caches or {}
    for size, cache in caches.items():
        if not isinstance(cache, HookedTransformerKeyValueCache):
            kind = type(cache).__name__
            raise ModelError(f"kv_caches holds a {kind}; expected TransformerLens KV caches")
        if not cache.frozen or not all(entry.frozen for entry in cache.entries):
            raise ModelError(
                f"the KV cache of batch size {size} would grow with every forward; call cache.freeze()"
            )
        _check_cache(model.cfg, size, cache)
    if len({cache.previous_attention_mask.shape[1] for cache in caches.values()}) > 1:
        raise ModelError("the KV caches hold prefixes of different lengths; make them from one prefix")


def _check_cache(cfg: Any, size: int, cache: HookedTransformerKeyValueCache) -> None:
    """Check all keys and values, ``[batch, pos, head, d_head]``, and the mask ``[batch, pos]``."""
    found = [x for entry in cache.entries for x in (entry.past_keys, entry.past_values)]
    mask: Any = cache.previous_attention_mask
    if len(cache.entries) != cfg.n_layers or mask.ndim != 2 or len(mask) != size:
        raise ModelError(
            f"the KV cache of batch size {size} has {len(cache.entries)} layers and a mask of shape "
            f"{list(mask.shape)}; expected {cfg.n_layers} and [{size}, pos]"
        )
    shape = (size, mask.shape[1], cfg.n_heads, cfg.d_head)
    groups = {x.shape[2] for x in found if x.ndim == 4}
    if groups == {cfg.n_key_value_heads} and groups != {cfg.n_heads}:
        raise ModelError(
            f"the KV cache of batch size {size} holds keys of {groups.pop()} groups, not of "
            f"{cfg.n_heads} heads; pass it to pahq_plugin.adapt(model, kv_caches=...)"
        )
    for x in found:
        if tuple(x.shape) != shape or torch.promote_types(x.dtype, cfg.dtype) != cfg.dtype:
            raise ModelError(
                f"the KV cache of batch size {size} holds {x.dtype} of shape {list(x.shape)}; expected "
                f"{cfg.dtype} of shape {list(shape)}"
            )
    if not all(bool(x.isfinite().all()) for x in found):
        raise ModelError(f"the KV cache of batch size {size} holds NaN or infinity")


def check_transformer(model: PatchableModel, method: str) -> None:
    """Refuse a model without attention heads for ``method``, which chooses their precision."""
    if not model.is_transformer or not hasattr(model.wrapped_model, "blocks"):
        raise ModelError(
            f"{method} chooses the precision of attention heads, but the model is not a transformer; "
            'use method="acdc"'
        )


def check_finite(model: PatchableModel) -> None:
    """Check that all weights are finite and usable outside ``torch.inference_mode``.

    Raises:
        ModelError: a weight is not; the message names the first in layer order.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ModelError(
                f"weights of {plain_name(name)} were made inside torch.inference_mode; make or copy the "
                "model outside it"
            )
        # The extremes of entries with a NaN are NaN.
        if parameter.numel() and not all(map(math.isfinite, torch.aminmax(parameter.detach()))):
            raise ModelError(f"weights of {plain_name(name)} hold NaN or infinity")
        let_go_if_unchanged(parameter)


def weight_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the model's own parameters by name, without the host's patch masks."""
    for name, parameter in model.named_parameters():
        if not name.endswith("patch_mask"):
            yield plain_name(name), parameter


def model_digest(model: PatchableModel) -> str:
    """Hash the graph's edges and every weight's name, shape, dtype and content."""
    digest = hashlib.blake2b(digest_size=16)
    for edge in canonical_edges(model):
        digest.update(edge_label(edge).encode())
    for name, parameter in sorted(weight_parameters(model)):
        content = fingerprint(parameter)
        let_go_if_unchanged(parameter, content)
        entry = (name, tuple(parameter.shape), str(parameter.dtype), content)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def configuration_digest(model: PatchableModel) -> str:
    """Hash everything but weights that determines a model's output.

    This covers its configuration, the output positions, the length of a common prefix, and every change
    of its modules since they were made. The hash is the same on every machine and for every ``n_ctx``.
    """
    parts: list[Any] = [repr(model.out_slice)]
    if model.kv_caches:
        parts.append(next(iter(model.kv_caches.values())).previous_attention_mask.shape[1])
    if model.is_transformer and hasattr(model.wrapped_model, "blocks"):
        usual = {field.name: field.default for field in fields(HookedTransformerConfig)}
        parts += sorted(
            (name, str(value))
            for name, value in vars(model.cfg).items()
            if name not in {*MACHINE_FIELDS, *UNCOMPUTED_FIELDS} and value != usual.get(name, MISSING)
        )
        parts += sorted(change.record() for change in changes(model))
    else:
        parts += sorted(_plain_contents(model.wrapped_model))
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _plain_contents(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield the numbers, functions and buffers of the modules of a model without a configuration."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and isinstance(value, (bool, int, float, str)):
                yield name, key, repr(value)
            elif isinstance(value, FunctionType):
                yield name, key, value.__qualname__
        for key, buffer in module.named_buffers(recurse=False):
            yield name, key, f"{tuple(buffer.shape)} {fingerprint(buffer)}"


@torch.inference_mode()
def output_width(model: PatchableModel, tokens: torch.Tensor) -> int:
    """Return the width of the last axis of the model's output on prompts ``[batch, pos]``."""
    return model.cfg.d_vocab_out if model.is_transformer else model(tokens[:1]).shape[-1]


def model_device(model: PatchableModel) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device
