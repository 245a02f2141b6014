"""Borrow a host model's state for a run and restore it, whatever happens meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from auto_circuit.types import PatchWrapper
from torch import nn
from transformer_lens.hook_points import HookPoint

from pahq_plugin.errors import ConfigError
from pahq_plugin.host.types import PatchableModel
from pahq_plugin.system.torch_state import own_arithmetic


@contextmanager
def borrowed(model: PatchableModel) -> Iterator[None]:
    """Lend the model in evaluation mode, masks at zero, without gradients; then restore its state.

    Patch masks, gradients, ``requires_grad``, training modes and hooks are restored even if the body
    raises or is interrupted. Inside, products use the precision of their operands; see `own_arithmetic`.

    Raises:
        ConfigError: the host is patching the model, or another thread has borrowed it.
    """
    with _by_one_thread(model):
        _check_at_rest(model)
        with _at_rest(model), own_arithmetic():
            yield


@contextmanager
def _at_rest(model: PatchableModel) -> Iterator[None]:
    """Set and restore masks, gradients, training modes and hooks, as `borrowed` describes."""
    modes = [(module, module.training) for module in model.modules()]
    hooks = [(container, container.copy()) for container in _hooks(model)]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    masks = [(w.patch_mask, w.patch_mask.data, w.patch_mask.data.clone()) for w in model.dest_wrappers]
    with_gradients, on_interrupt = torch.is_grad_enabled(), signal.getsignal(signal.SIGINT)
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.grad = None
            parameter.requires_grad_(False)
        with torch.inference_mode(False):  # attribution needs gradients of masks
            for mask, _, _ in masks:
                mask.data = torch.zeros_like(mask.data)
        yield
    finally:
        with uninterrupted(on_interrupt):
            torch.set_grad_enabled(with_gradients)
            for wrapper in model.wrappers:  # the host does not if it is interrupted while it starts
                wrapper.patch_mode, wrapper.curr_src_outs = False, None
                if wrapper.is_dest:
                    wrapper.patch_src_outs = None
            for mask, tensor, values in masks:
                mask.data = tensor
                mask.data.copy_(values)
            for parameter, requires_grad, grad in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            for module, training in modes:
                module.training = training
            for container, content in hooks:
                _refill(container, content)


Hooks = dict[int, Any] | list[Any]


def _hooks(model: PatchableModel) -> Iterator[Hooks]:
    """Yield the containers in which torch and TransformerLens keep each module's hooks."""
    for module in model.modules():
        yield module._forward_hooks
        yield module._forward_pre_hooks
        yield module._backward_hooks
        yield module._backward_pre_hooks
        if isinstance(module, HookPoint):
            yield module.fwd_hooks
            yield module.bwd_hooks


def _refill(container: Hooks, content: Any) -> None:
    """Restore a container's content in place, since hook handles refer to the container itself."""
    container.clear()
    if isinstance(container, dict):
        container.update(content)
    else:
        container.extend(content)


@contextmanager
def uninterrupted(before: Any) -> Iterator[None]:
    """Defer Ctrl-C until the ``with`` block is done; ``before`` then handles it."""
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


def _check_at_rest(model: PatchableModel) -> None:
    """Refuse a model whose forwards the host is patching, with a `ConfigError`."""
    # This includes wrappers of an earlier PatchableModel around the same model.
    if any(isinstance(module, PatchWrapper) and module.patch_mode for module in model.modules()):
        raise ConfigError("the model is in a patch_mode block; leave that first")
    if any(wrapper.mask_fn is not None for wrapper in model.dest_wrappers):
        raise ConfigError("the model is in a mask_fn_mode block; leave that first")
    if any(wrapper.batch_size is not None for wrapper in model.dest_wrappers):
        raise ConfigError("the model is in a set_mask_batch_size block; leave that first")


_HOLDING = threading.Lock()
_HOLDERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The thread that has borrowed each wrapped model; that thread may borrow it again inside."""


@contextmanager
def _by_one_thread(model: PatchableModel) -> Iterator[None]:
    """Hold the model for this thread; raise a `ConfigError` if another thread has borrowed it."""
    own, inner = threading.get_ident(), model.wrapped_model
    with _HOLDING:
        is_first = inner not in _HOLDERS
        holder = _HOLDERS.setdefault(inner, own)
    if holder != own:
        raise ConfigError(
            "another thread searches or evaluates this model; give each thread a copy.deepcopy of it"
        )
    try:
        yield
    finally:
        if is_first:
            with _HOLDING:
                del _HOLDERS[inner]


@contextmanager
def unsplit(model: PatchableModel) -> Iterator[None]:
    """Switch off a transformer's flags for patching inside the ``with`` block.

    The flags that split the inputs and outputs of every head make a forward several times as slow.
    """
    flags = ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"]
    cfg = model.cfg if model.is_transformer else None
    if getattr(cfg, "use_normalization_before_and_after", False):
        flags.remove("use_attn_result")  # head results include the norm after attention
    before = {flag: getattr(cfg, flag) for flag in flags if hasattr(cfg, flag)}
    try:
        for flag in before:
            setattr(cfg, flag, False)
        yield
    finally:
        for flag, value in before.items():
            setattr(cfg, flag, value)
