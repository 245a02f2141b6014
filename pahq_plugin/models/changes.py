"""Find what a model computes beyond its configuration.

A configuration describes the modules of a model and what they hold. A model may have been changed since:
hooks, replaced methods and functions, edited masks and numbers, layers of another package. Code that
stores a model, or reads its weights instead of calling it, would silently lose such changes, so it
checks here first:

1. Make the modules anew from the configuration, without memory for weights (`_plain_parts` here, the
   model's own class in `hugging_face`).
2. Compare class, hooks, methods, functions, numbers, buffers and names of weights of both
   (`differences`).
3. The caller stores the changes that its format can hold and refuses the others by name.

`first_change` and `odd_attention` answer the narrower question of the incremental engine, which calls
functions and reads buffers in place, so nothing is made anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, partialmethod
from types import FunctionType
from typing import Any, Literal, TypeVar

import torch
from auto_circuit.types import PatchWrapper
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from transformer_lens import HookedTransformer
from transformer_lens.components import TransformerBlock
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS as ACTIVATIONS

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.host.types import PatchableModel
from pahq_plugin.models.adapt import PostNormed
from pahq_plugin.system.fingerprint import fingerprint, function_digest

MAKERS = {"transformer_lens", "auto_circuit", "pahq_plugin"}
"""Packages whose modules are trusted to compute what their class says."""

LIBRARIES = {
    "builtins", "torch", "transformers", "huggingface_hub", "accelerate", "functools", "contextlib",
    "abc", "better_abc", "typing", "typing_extensions", "jaxtyping", "beartype", "typeguard",
}  # fmt: skip
"""Packages that decorate methods of these classes, or that define their base classes."""

PLAIN = (nn.Dropout, nn.Identity, nn.ModuleList)
"""torch modules that TransformerLens and the host use; experts hold `torch.nn.Linear`, too."""

UNCOMPUTED = {
    "training", "gradient_checkpointing", "name_or_path", "padding_idx", "p", "loss_type", "vocab_size",
}  # fmt: skip
"""Attributes of modules without influence on their output in evaluation mode."""

TABLES = 2e-3
"""Tolerance for float buffers between devices, such as a rotary sine at position 2,047."""

Module = TypeVar("Module", bound=nn.Module)

Kind = Literal["hooks", "class", "method", "function", "number", "buffer", "weight", "configuration"]


@dataclass(frozen=True, eq=False)
class Change:
    """One deviation of a model from its configuration.

    Attributes:
        module: the module's name, such as ``"blocks.0.attn"``; empty for the model itself.
        name: name of the attribute, method or weight, or of an unexpected class.
        kind: what was changed.
        value: the current number, function, buffer or weight.
    """

    module: str
    name: str
    kind: Kind
    value: Any = None

    @property
    def path(self) -> str:
        """Return the attribute's full name, such as ``"blocks.0.attn.mask"``."""
        return f"{self.module}.{self.name}".removeprefix(".")

    def __str__(self) -> str:
        where = self.module or "the model"
        return {
            "hooks": f"hooks on {where}",
            "class": f"{where}, a {self.name}",
            "method": f"the replaced {self.name} of {where}",
            "function": f"the replaced {self.name} of {where}",
            "number": f"{self.path} of {self.value!r}",
            "buffer": f"the edited {self.path}",
            "weight": f"the {'missing' if self.value is None else 'additional'} {self.path}",
            "configuration": f"the different configuration of {where}",
        }[self.kind]

    def record(self) -> tuple[str, str, str]:
        """Describe what was changed and to what, the same in every process and on every machine."""
        if self.kind == "buffer":
            content = str(None if self.value is None else fingerprint(self.value))
        elif self.kind == "function":
            content = str(getattr(self.value, "__qualname__", type(self.value).__name__))
        else:
            content = repr(getattr(self.value, "item", lambda: self.value)())
        return self.path, self.kind, content


# Comparison with the model that the configuration makes ---------------------------------------------


def changes(model: HookedTransformer | PatchableModel) -> Iterator[Change]:
    """Yield every deviation of a TransformerLens model from its configuration.

    The host's patch wrappers and `PostNormed` do not count: they make the model patchable. Takes about
    as long as making the model anew without its weights.
    """
    if _hooks_everywhere():
        yield Change("all modules", "", "hooks")
    inner: Any = model.wrapped_model if isinstance(model, PatchableModel) else model
    for name, module in inner.named_modules(remove_duplicate=False):
        if isinstance(module, (PatchWrapper, PostNormed)) and has_hooks(module):
            yield Change(plain_name(name), "", "hooks")
    modules = _own_modules(inner)
    for name, module in modules.items():
        own = getattr(module, "cfg", inner.cfg)
        if own is not inner.cfg and vars(own) != vars(inner.cfg):
            yield Change(name, "cfg", "configuration")
    for prefix, plain in _plain_parts(inner.cfg):
        wanted = {f"{prefix}{name}".rstrip("."): module for name, module in plain.named_modules()}
        found = {
            name: module
            for name, module in modules.items()
            if (f"{name}.".startswith(prefix) if prefix else not name.startswith("blocks."))
        }
        yield from differences(found, wanted)


def _own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return modules by their TransformerLens names, without those that make the model patchable."""
    everything = dict(model.named_modules(remove_duplicate=False))
    added = {
        name for name, module in everything.items() if isinstance(module, (PatchWrapper, PostNormed))
    }
    added |= {f"{name}.dropout_layer" for name in added}  # of the host's masks
    found: dict[str, nn.Module] = {}
    for name, module in everything.items():
        if name not in added:
            name = plain_name(f"{name}.").removesuffix(".")
            name = name.replace("attn.hook_result.norm", "ln1_post")  # moved there by `adapt`
            found[name.replace("attn.hook_result.hook", "attn.hook_result")] = module
    return found


def _plain_parts(cfg: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts that a configuration makes, by prefix of their names, without memory for weights.

    First the model without its blocks, then block by block, since each holds a mask of the context.
    """
    cfg, bare = copy.copy(cfg), copy.copy(cfg)
    bare.n_layers, bare.tokenizer_name, bare.seed, bare.init_weights = 0, None, None, False
    yield "", without_weights(lambda: HookedTransformer(bare, move_to_device=False))
    for layer in range(cfg.n_layers):
        yield f"blocks.{layer}.", without_weights(partial(TransformerBlock, cfg, layer))


class _NoMemory(TorchFunctionMode):
    """Puts empty tensors (weights, not buffers) on the meta device, in this thread only, unlike
    `accelerate`'s way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def without_weights(make: Callable[[], Module]) -> Module:
    """Make a module with its buffers on the CPU, without memory for its weights.

    Raises:
        ModelError: the configuration does not make a module.
    """
    try:
        with torch.device("cpu"), _NoMemory():
            return make()
    except Exception as error:  # a library may raise anything on an edited configuration
        raise ModelError(
            f"no model can be made from the model's configuration: {one_line(error)}; "
            "restore the configuration that the model was made with"
        ) from error


def differences(found: Mapping[str, nn.Module], plain: Mapping[str, nn.Module]) -> Iterator[Change]:
    """Yield the differences of a model's modules from modules made from a configuration.

    The weights of ``plain`` may be on the meta device, and the class of the root, ``""``, may differ.
    """
    for name, module in found.items():
        if has_hooks(module):
            yield Change(name, "", "hooks")
        if name not in plain or (name and type(module) is not type(plain[name])):
            yield Change(name, type(module).__name__, "class")
        else:
            yield from _inside(name, module, plain[name])
    for name in sorted(plain.keys() - found.keys()):
        yield Change(name, "missing module", "class")


def _inside(name: str, module: nn.Module, plain: nn.Module) -> Iterator[Change]:
    """Yield the differences between two modules of one class, submodules aside."""
    replaced = _replaced_method(module)
    if replaced is not None:
        yield Change(name, replaced, "method")
    now, before = vars(module), vars(plain)
    for key in sorted((before.keys() & now.keys()) - UNCOMPUTED):
        value, right = now[key], before[key]
        if key.startswith("_"):
            continue
        if _is_plain(right) and (not _is_plain(value) or value != right):
            yield Change(name, key, "number", value)
        elif _is_function(right) and not _same_function(value, right):
            yield Change(name, key, "function", value)
    for key in sorted(module._buffers.keys() | plain._buffers.keys()):
        value, made = module._buffers.get(key), plain._buffers.get(key)
        if key == "alibi" and made is None and value is not None:  # made on first use
            made = _made_alibi(plain, value)
        if not _same_buffer(value, made):
            yield Change(name, key, "buffer", value)
    own, wanted = (
        {key: x for key, x in m._parameters.items() if x is not None} for m in (module, plain)
    )
    for key in sorted(own.keys() ^ wanted.keys()):
        yield Change(name, key, "weight", own.get(key))


def _made_alibi(attn: Any, value: Tensor) -> Tensor:
    return attn.create_alibi_bias(attn.cfg.n_heads, value.shape[-1], value.device)


def _same_buffer(value: Tensor | None, made: Tensor | None) -> bool:
    """Return whether two buffers are equal up to rounding on another device or to another dtype."""
    if value is None or made is None:
        return value is made
    if value.shape != made.shape:
        return False
    made = made.to(value.device, value.dtype)
    if not value.is_floating_point():
        return torch.equal(value, made)
    error = max(TABLES, 2 * torch.finfo(value.dtype).eps)
    return torch.allclose(value.double(), made.double(), rtol=error, atol=0 if value.ndim < 2 else error)


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, (nn.Module, type))


def _same_function(value: Any, made: Any) -> bool:
    """Return whether two functions have the same contents."""
    return value is made or (_is_function(value) and function_digest(value) == function_digest(made))


def activation_name(function: object) -> str | None:
    """Return TransformerLens' name of an activation function; ``None`` for any other function."""
    return next((name for name, known in ACTIVATIONS.items() if known is function), None)


# Checks of the incremental engine -------------------------------------------------------------------


def first_change(model: PatchableModel) -> str | None:
    """Describe the first change that a unit-by-unit forward would miss; ``None`` if there is none.

    These are hooks, methods and classes: functions, numbers and buffers are read from the modules.
    """
    if _hooks_everywhere():
        return "hooks on all modules"
    for name, module in model.named_modules():
        name = plain_name(name)
        change = str(Change(name, "", "hooks")) if has_hooks(module) else replaced(module, name)
        if change is not None:
            return change
    return None


def replaced(module: nn.Module, name: str) -> str | None:
    """Describe what replaces a module's own arithmetic, hooks aside; ``None`` if nothing does."""
    kind = type(module)
    if kind in PLAIN or (kind is nn.Linear and ".mlp." in name):
        return None
    if _maker(kind) not in MAKERS:
        return str(Change(name, kind.__name__, "class"))
    method = _replaced_method(module)
    return None if method is None else str(Change(name, method, "method"))


def _replaced_method(module: nn.Module) -> str | None:
    """Return the first method that was replaced in the object or in its class."""
    kind = type(module)
    in_object = (key for key in vars(module) if callable(getattr(kind, key, None)))
    in_class = (
        key
        for ancestor in kind.__mro__
        if _maker(ancestor) not in LIBRARIES
        for key, value in vars(ancestor).items()
        if (writer := _writer(value)) is not None
        and writer not in {_maker(ancestor), *MAKERS, *LIBRARIES}
    )
    return next(in_object, None) or next(in_class, None)


def _writer(value: object) -> str | None:
    """Return the package of the code behind a class attribute, which `functools.wraps` does not change;
    ``None`` if it is not a function."""
    if isinstance(value, property):
        value = value.fget
    while isinstance(value, (staticmethod, classmethod, partialmethod)):
        value = value.func if isinstance(value, partialmethod) else value.__func__
    if not isinstance(value, FunctionType):
        return None
    return str(value.__globals__.get("__name__", "")).partition(".")[0]


def _maker(kind: type) -> str:
    """Return the package that defines a class."""
    return kind.__module__.partition(".")[0]


def _hooks_everywhere() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Return whether the module has hooks of torch or TransformerLens."""
    own = getattr(module, "fwd_hooks", None) or getattr(module, "bwd_hooks", None)  # a HookPoint's
    return bool(own or module._forward_hooks or module._forward_pre_hooks)


def odd_attention(model: PatchableModel, length: int) -> str | None:
    """Describe the first attention buffer that breaks an assumption of the incremental engine; ``None``
    if every position sees only itself or earlier ones, with unchanged ALiBi slopes.

    ``length`` is that of the longest prompt in tokens, including a common prefix.
    """
    for layer, block in enumerate(model.blocks):
        attn, name = block.attn, f"blocks.{layer}.attn"
        if float(attn.IGNORE) != -math.inf:
            return f"{name}.IGNORE of {float(attn.IGNORE):g}"
        mask = attn.mask[-length:, -length:]  # as TransformerLens reads it
        if attn.cfg.attention_dir == "causal" and bool(mask.triu(1).any()):
            return f"{name}.mask, which lets positions attend to later ones"
        if attn.cfg.attention_dir == "causal" and not bool(mask.any(dim=1).all()):
            return f"{name}.mask, which hides every key from a position"
        alibi = getattr(attn, "alibi", None)
        if alibi is not None and not torch.equal(alibi, _made_alibi(attn, alibi)):
            return f"the edited {name}.alibi"
    return None


def plain_name(name: str) -> str:
    """Return a module's or parameter's TransformerLens name, without the host's wrappers."""
    return name.removeprefix("wrapped_model").removeprefix(".").replace(".module.", ".")
