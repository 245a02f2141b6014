"""What somebody has changed about a model's modules since TransformerLens made them.

Whoever reads the weights off the modules instead of calling them, as a fast engine and an export do,
would pass over hooks, replaced methods and classes of other origin without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import FunctionType

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformer_lens.hook_points import HookPoint

from pahq_plugin.host.types import PatchableModel

MAKERS = {"transformer_lens", "auto_circuit", "pahq_plugin"}
"""Packages whose modules compute what their names say."""

PLAIN = (nn.Dropout, nn.Identity, nn.ModuleList)
"""Modules of torch's that TransformerLens and the host use; experts hold `torch.nn.Linear`, too."""


def first_change(model: PatchableModel) -> str | None:
    """The first change of what the model's forward computes, in words; ``None`` if there is none."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks on all modules"
    changes = (
        change_of(module, plain_name(name) or "the model") for name, module in model.named_modules()
    )
    return next((change for change in changes if change is not None), None)


def change_of(module: nn.Module, name: str) -> str | None:
    """What has been changed about one module, in words."""
    if _has_hooks(module):
        return f"hooks on {name}"
    return replaced(module, name)


def replaced(module: nn.Module, name: str) -> str | None:
    """What about a module's own arithmetic has been replaced, hooks aside, in words."""
    kind = type(module)
    if kind in PLAIN or (kind is nn.Linear and ".mlp." in name):
        return None
    method = next((key for key in vars(module) if callable(getattr(kind, key, None))), None)
    method = method or next((key for key, made in _functions(kind) if made not in MAKERS), None)
    if method is not None and _maker(kind) in MAKERS:
        return f"the replaced {method} of {name}"
    return None if _maker(kind) in MAKERS else f"{name}, a {kind.__name__}"


def _functions(kind: type) -> Iterator[tuple[str, str]]:
    """The functions of a class and of those it is made from, torch's own aside: name and maker."""
    for ancestor in kind.__mro__:
        if _maker(ancestor) in MAKERS:
            for key, value in vars(ancestor).items():
                if isinstance(value, FunctionType):
                    yield key, _maker(value)


def _maker(made: type | FunctionType) -> str:
    """The package that something was defined in."""
    return made.__module__.partition(".")[0]


def _has_hooks(module: nn.Module) -> bool:
    own = isinstance(module, HookPoint) and (module.fwd_hooks or module.bwd_hooks)
    return bool(own or module._forward_hooks or module._forward_pre_hooks)


def odd_attention(model: PatchableModel, length: int) -> str | None:
    """What of the buffers that attention reads at the first ``length`` positions is not as
    TransformerLens makes it, in words; ``None`` if nothing is."""
    for layer, block in enumerate(model.blocks):
        attn, name = block.attn, f"blocks.{layer}.attn"
        if float(attn.IGNORE) != -math.inf:
            return f"{name}.IGNORE of {float(attn.IGNORE):g}"
        mask = attn.mask[:length, :length]
        if attn.cfg.attention_dir == "causal" and bool(mask.triu(1).any()):
            return f"{name}.mask, which lets positions see later ones"
        alibi = getattr(attn, "alibi", None)
        if alibi is not None and not torch.equal(
            alibi, attn.create_alibi_bias(attn.cfg.n_heads, alibi.shape[-1], alibi.device)
        ):
            return f"another {name}.alibi"
    return None


def plain_name(name: str) -> str:
    """A module's or parameter's name in TransformerLens, without the host's wrappers."""
    return name.removeprefix("wrapped_model").removeprefix(".").replace(".module.", ".")
