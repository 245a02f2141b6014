"""What somebody has changed about a model's modules since TransformerLens made them.

Whoever reads the weights off the modules instead of calling them, as a fast engine and an export do,
would pass over hooks, replaced methods and classes of other origin without a word.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module
from transformer_lens.hook_points import HookPoint

from pahq_plugin.host.types import PatchableModel

MAKERS = ("transformer_lens", "auto_circuit", "torch", "pahq_plugin")
"""Packages whose modules compute what their names say."""


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
    method = next((key for key in vars(module) if callable(getattr(kind, key, None))), None)
    if method is not None:
        return f"the replaced {method} of {name}"
    makers = {origin.__module__.partition(".")[0] for origin in (kind, kind.forward)}
    return None if makers <= set(MAKERS) else f"{name}, a {kind.__name__}"


def _has_hooks(module: nn.Module) -> bool:
    own = isinstance(module, HookPoint) and (module.fwd_hooks or module.bwd_hooks)
    return bool(own or module._forward_hooks or module._forward_pre_hooks)


def plain_name(name: str) -> str:
    """A module's or parameter's name in TransformerLens, without the host's wrappers."""
    return name.removeprefix("wrapped_model").removeprefix(".").replace(".module.", ".")
