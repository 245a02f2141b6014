"""Convert models of Hugging Face's `transformers`, in memory or in a folder, to patchable host models.

1. Find the model: given directly, wrapped by a TransformerBridge, or in a folder.
2. Compare it with a model made from its configuration: hooks, adapters, edited buffers and replaced
   parts would be lost, and are refused by name.
3. Read its configuration (`hf_configs`) and let TransformerLens convert the weights.
4. Compare the logits of both on random tokens in FP32, and refuse the conversion if they differ.

The hub is never contacted, no code from a folder is run, and nothing is unpickled.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.host.types import OutputSlice, PatchableModel
from pahq_plugin.models.adapt import adapt
from pahq_plugin.models.changes import Change, differences, has_hooks, without_weights
from pahq_plugin.models.hf_configs import ARCHITECTURES, MOST_POSITIONS, hooked_arguments
from pahq_plugin.models.hf_folder import load_folder, load_tokenizer

WRAPPED = "_original_component"
"""The attribute under which a TransformerBridge keeps a module that it wraps."""

CHECKED_TOKENS = 64
LARGEST_ERROR = 1e-3
"""Largest accepted logit error after conversion, in standard deviations of the logits.

Two correct FP32 computations differ by about 1e-5; a wrong rotary base, mask or norm causes 0.01 to 1.
16-bit models are compared as FP32 copies."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def from_hugging_face(
    model: Any,
    tokenizer: Any = None,
    *,
    slice_output: OutputSlice | None = "last_seq",
    seq_len: int | None = None,
    separate_qkv: bool = True,
    n_ctx: int | None = None,
    process: bool = False,
) -> PatchableModel:
    """Convert a Hugging Face model to the host's factorized model, ready for `discover`.

    The weights are copied in FP32 (FP64 for an FP64 model); the given model is left unchanged. The
    logits of both are then compared on random tokens. A 16-bit model is compared through an FP32 copy,
    which takes memory during the conversion.

    Args:
        model: a causal language model of ``transformers``; a TransformerBridge of TransformerLens 3 or
            4, or any object with such a model as ``original_model``; or a folder that
            ``save_pretrained`` wrote.
        tokenizer: a fast tokenizer, copied; ``None`` for that of the folder or bridge, if it has one.
        slice_output: the positions whose logits count; ``None`` for all.
        seq_len: number of tokens, for position-wise edges; ``None`` for edges of all positions.
        separate_qkv: whether a head's Q, K and V are separate destinations.
        n_ctx: context length; ``None`` for the model's own limit, but at most 2048.
        process: fold norms and centre weights as `load_problem` does. Edges have the same effects
            under resample ablation; logits differ by one number at each position.

    Raises:
        ModelError: the model or folder does not exist, its architecture or a value cannot be converted,
            it has hooks, adapters or parts that its configuration does not describe, or logits differ.
    """
    inner = hooked_model(model, tokenizer, n_ctx=n_ctx, process=process)
    return adapt(inner, slice_output=slice_output, seq_len=seq_len, separate_qkv=separate_qkv)


def hooked_model(
    model: Any,
    tokenizer: Any = None,
    *,
    n_ctx: int | None = None,
    process: bool = False,
    device: str | None = None,
) -> HookedTransformer:
    """Convert a Hugging Face model to a `HookedTransformer` with all flags off, as in
    `from_hugging_face`; without a ``device`` it is on the given model's."""
    name: str | None = None
    if isinstance(model, (str, Path)):
        folder = Path(model).expanduser()
        name = f"{folder.resolve().name} (local)"
        model = load_folder(folder)
        tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
    elif isinstance(getattr(model, "original_model", None), nn.Module):  # a bridge
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        model = model.original_model
    architecture = _architecture(model)
    own_dtype, own_device = _dtype_and_device(model)
    dtype = torch.promote_types(own_dtype, torch.float32)
    arguments = hooked_arguments(architecture, model.config)
    arguments |= {
        "n_ctx": _positions(n_ctx, arguments["n_ctx"]),
        "model_name": name or _model_name(model, architecture),
        "dtype": dtype,
        "device": str(own_device),
    }
    plain = _as_configured(model, architecture)
    is_wrapped = any(WRAPPED in module._modules for module in model.modules())
    own = _filled(plain, model) if is_wrapped else model
    with torch.no_grad():
        # Conversions multiply and add, which would round in 16 bits.
        wide = own if own_dtype == dtype else _widened(own, plain)
        hooked = _converted(wide, architecture, arguments, process)
        _check_logits(model if own_dtype == dtype else wide, hooked)
    if tokenizer is not None:
        _give_tokenizer(hooked, tokenizer)
    if device is not None:
        hooked.to(device, print_details=False)
    return hooked


# Which model it is -------------------------------------------------------------------------------


def _architecture(model: object) -> str:
    """Return the model's architecture; refuse one that cannot be converted with a `ModelError`."""
    for base in type(model).__mro__:
        if base.__name__ in ARCHITECTURES and hasattr(model, "config"):
            return base.__name__
    raise ModelError(
        f"model is a {type(model).__name__}; supported Hugging Face architectures: "
        f"{', '.join(ARCHITECTURES)}"
    )


def _dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the narrowest dtype and the only device of the weights; refuse quantised weights."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        found = ", ".join(sorted(map(str, devices))) or "no device"
        raise ModelError(f"the model's weights are on {found}; move it to one device first")
    if not dtypes <= set(DTYPES):
        raise ModelError("the model is quantised: weights are not floats; load it unquantised")
    return min(dtypes, key=lambda dtype: torch.finfo(dtype).bits), devices.pop()


def _positions(asked: int | None, most: int) -> int:
    """Return the context length; refuse one outside 1 to the model's own limit ``most``."""
    if asked is None:
        return min(most, MOST_POSITIONS)
    if not 1 <= asked <= most:
        raise ModelError(f"n_ctx={asked} must be from 1 to {most}, the model's context")
    return asked


def _model_name(model: Any, architecture: str) -> str:
    """Return the model's name on the hub if it was loaded from there; otherwise mark it as local."""
    path = str(getattr(model.config, "_name_or_path", "") or architecture)
    if path == architecture or (
        re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) and not Path(path).exists()
    ):
        return path
    return f"{Path(path).name} (local)"


def _as_configured(model: Any, architecture: str) -> Any:
    """Make the model anew from its configuration, without memory for its weights; refuse a model that
    has other weights, hooks, buffers or parts than its configuration describes."""
    made = getattr(transformers, architecture)
    plain = without_weights(lambda: made(copy.deepcopy(model.config)))
    hooks = (
        Change(name, "", "hooks")
        for name, module in model.named_modules()
        if WRAPPED in name.split(".") and has_hooks(module)
    )
    changes = [*hooks, *differences(_own_modules(model), dict(plain.named_modules()))]
    lost = [str(change) for change in changes if not _is_zero_bias(change)]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ModelError(
            f"the {architecture} differs from what its configuration describes, and converting it would "
            f"lose {'; '.join(lost[:3])}{more}; undo that first (for adapters: merge_and_unload())"
        )
    return plain


def _own_modules(model: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """Return modules by name, without the wrappers of a TransformerBridge."""
    inner = model._modules.get(WRAPPED)
    if inner is not None:
        return _own_modules(inner, name)
    found = {name: model}
    for child_name, child in model.named_children():
        found |= _own_modules(child, f"{name}.{child_name}".removeprefix("."))
    return found


def _is_zero_bias(change: Change) -> bool:
    """Return whether a change is a bias of 0, which a TransformerBridge adds to heads without bias."""
    if change.kind != "weight" or change.name != "bias" or change.value is None:
        return False
    return not bool(change.value.any())


def _filled(plain: Any, model: nn.Module) -> Any:
    """Fill the model as configured with the weights of the given model."""
    own = _own_modules(model)
    for name, module in plain.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = own[name]._parameters[key]
    return plain.eval()


def _widened(model: Any, plain: Any) -> Any:
    """Copy a 16-bit model to FP32, with the unrounded buffers of ``plain``."""
    wide = copy.deepcopy(model).float()
    for name, module in plain.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                wide.get_submodule(name)._buffers[key] = buffer.to(next(wide.parameters()).device)
    return wide


# Conversion --------------------------------------------------------------------------------------


def _converted(
    model: Any, architecture: str, arguments: dict[str, Any], process: bool
) -> HookedTransformer:
    """Convert the weights through TransformerLens; refuse those that do not fit the configuration."""
    family, kind = ARCHITECTURES[architecture].family, arguments["normalization_type"]
    module = import_module(f"transformer_lens.pretrained.weight_conversions.{family}")
    folded: dict[str, Any] = {**arguments, "init_weights": False}
    if process:
        folded["normalization_type"] = f"{kind}Pre"
    try:
        hooked = HookedTransformer(HookedTransformerConfig(**folded))
        state = getattr(module, f"convert_{family}_weights")(model, hooked.cfg)
        _load(hooked, state, process, centred=kind == "LN")
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the {architecture} does not fit its configuration: {one_line(error)}"
        ) from error
    hooked.eval()
    return hooked.requires_grad_(False)


def _load(hooked: HookedTransformer, state: dict[str, Tensor], process: bool, centred: bool) -> None:
    """Load converted weights; only biases may be missing, any other weight is a `ValueError`."""
    if "pos_embed.W_pos" in state:
        state["pos_embed.W_pos"] = state["pos_embed.W_pos"][: hooked.cfg.n_ctx]
    for name in dict(hooked.named_parameters()).keys() - state.keys():
        if not name.rsplit(".", 1)[-1].lstrip("_").startswith("b"):
            raise ValueError(f"it has no {name}")
    like = next(hooked.parameters())
    state = {name: value.detach().to(like.device, like.dtype) for name, value in state.items()}
    if process:
        hooked.load_and_process_state_dict(
            state,
            center_writing_weights=centred,
            center_unembed=hooked.cfg.output_logits_soft_cap <= 0,
        )
    else:
        hooked.load_state_dict(state, strict=False)


def _check_logits(model: Any, hooked: HookedTransformer) -> None:
    """Refuse a conversion whose logits differ from those of ``model`` (FP32 or FP64).

    A constant offset over the vocabulary at a position does not count.
    """
    length = min(CHECKED_TOKENS, hooked.cfg.n_ctx)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(hooked.cfg.d_vocab, (1, length), generator=draw)
    tokens = tokens.to(next(model.parameters()).device)
    with torch.inference_mode(), _evaluating(model):
        theirs = model(input_ids=tokens, use_cache=False).logits.to(torch.float64)
        ours = hooked(tokens).to(torch.float64)
    ours, theirs = (x - x.mean(dim=-1, keepdim=True) for x in (ours, theirs))
    error = float((ours - theirs).abs().max() / theirs.std().clamp(min=1e-30))
    if not error <= LARGEST_ERROR:
        raise ModelError(
            f"after conversion the logits of {hooked.cfg.model_name} differ by {error:.2g} of their "
            f"standard deviation (at most {LARGEST_ERROR:g}); this model computes something that "
            "a HookedTransformer cannot"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _give_tokenizer(hooked: HookedTransformer, tokenizer: Any) -> None:
    """Set a copy of the tokenizer, as `HookedTransformer.set_tokenizer` does, but without the hub."""
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise ModelError(
            f"tokenizer is a {type(tokenizer).__name__}; expected one of transformers, such as "
            "AutoTokenizer.from_pretrained gives"
        )
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    for kind in ("pad_token", "bos_token"):
        if getattr(own, kind) is None and own.eos_token is not None:
            setattr(own, kind, own.eos_token)
    hooked.tokenizer = own
    hooked.cfg.tokenizer_prepends_bos = len(own.encode("")) > 0
