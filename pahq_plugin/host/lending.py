"""A host model's state lent to a run and given back, whatever happens meanwhile."""

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
    """Lend the model in evaluation mode, masks at zero, no gradients; then give it back.

    Patch masks, gradients, ``requires_grad``, training modes and hooks are afterwards what they were,
    also when the body raises or is interrupted. Inside, products are made in the precision of their
    operands, see `own_arithmetic`.

    Raises:
        ConfigError: the host is patching the model, or another thread has it.
    """
    with _by_one_thread(model):
        _check_at_rest(model)
        with _at_rest(model), own_arithmetic():
            yield


@contextmanager
def _at_rest(model: PatchableModel) -> Iterator[None]:
    """What `borrowed` says of masks, gradients, modes and hooks."""
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
        with torch.inference_mode(False):  # gradients of masks are what attribution is made of
            for mask, _, _ in masks:
                mask.data = torch.zeros_like(mask.data)
        yield
    finally:
        with uninterrupted(on_interrupt):
            torch.set_grad_enabled(with_gradients)
            for wrapper in model.wrappers:  # the host does not, where it is interrupted while it begins
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
    """Where torch and TransformerLens keep the hooks of each module."""
    for module in model.modules():
        yield module._forward_hooks
        yield module._forward_pre_hooks
        yield module._backward_hooks
        yield module._backward_pre_hooks
        if isinstance(module, HookPoint):
            yield module.fwd_hooks
            yield module.bwd_hooks


def _refill(container: Hooks, content: Any) -> None:
    """Make a container hold what it held before; handles of hooks refer to the container itself."""
    container.clear()
    if isinstance(container, dict):
        container.update(content)
    else:
        container.extend(content)


@contextmanager
def uninterrupted(before: Any) -> Iterator[None]:
    """Have Ctrl-C wait until the ``with`` block is done; ``before`` is what handles it."""
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
    """
    Raises:
        ConfigError: forwards of the model are being patched by the host.
    """
    # Also those of a PatchableModel that was made of the same model before.
    if any(isinstance(module, PatchWrapper) and module.patch_mode for module in model.modules()):
        raise ConfigError("the model is in a patch_mode block; leave that first")
    if any(wrapper.mask_fn is not None for wrapper in model.dest_wrappers):
        raise ConfigError("the model is in a mask_fn_mode block; leave that first")
    if any(wrapper.batch_size is not None for wrapper in model.dest_wrappers):
        raise ConfigError("the model is in a set_mask_batch_size block; leave that first")


_HOLDING = threading.Lock()
_HOLDERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Threads that have borrowed a model, by what the host wraps; a thread may do so again inside."""


@contextmanager
def _by_one_thread(model: PatchableModel) -> Iterator[None]:
    """
    Raises:
        ConfigError: another thread has borrowed the model.
    """
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
    """Inside the ``with`` block a transformer runs as it would without any patching in mind.

    The flags that give every head inputs and outputs of its own cost the host several times the
    forward itself.
    """
    flags = ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"]
    cfg = model.cfg if model.is_transformer else None
    if getattr(cfg, "use_normalization_before_and_after", False):
        flags.remove("use_attn_result")  # results of heads carry the norm that came after them
    before = {flag: getattr(cfg, flag) for flag in flags if hasattr(cfg, flag)}
    try:
        for flag in before:
            setattr(cfg, flag, False)
        yield
    finally:
        for flag, value in before.items():
            setattr(cfg, flag, value)
