"""What a host model that was lent must look like when it is given back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor, nn


@dataclass(frozen=True)
class _Parameter:
    """One parameter as it was: the object, its storage, its content and its gradient."""

    parameter: nn.Parameter
    storage: int
    content: Tensor
    requires_grad: bool
    grad: Tensor | None
    grad_content: Tensor | None


class Snapshot:
    """All that a borrower of the model may not change."""

    def __init__(self, model: PatchableModel) -> None:
        self._model = model
        self._parameters = {name: _remember(p) for name, p in model.named_parameters()}
        self._modes = {name: module.training for name, module in model.named_modules()}
        self._attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        self._hooks = _count_hooks(model)
        self._flags = {name: getattr(w, "patch_mode", None) for name, w in _wrappers(model)}

    def assert_unchanged(self) -> None:
        """Masks, weights, gradients, ``requires_grad``, training modes and hooks are as they were."""
        named = dict(self._model.named_parameters())
        assert named.keys() == self._parameters.keys()
        for name, before in self._parameters.items():
            _assert_same(name, before, named[name])
        modules = dict(self._model.named_modules())
        assert {name: module.training for name, module in modules.items()} == self._modes
        assert {name: set(vars(module)) for name, module in modules.items()} == self._attributes
        assert _count_hooks(self._model) == self._hooks
        assert {n: getattr(w, "patch_mode", None) for n, w in _wrappers(self._model)} == self._flags


def unusual_state(model: PatchableModel) -> Snapshot:
    """Put the model in a state that nobody would guess, and remember it.

    Masks at odd values, some parameters that require gradients, some with one, and training modes
    that differ from module to module.
    """
    generator = torch.Generator().manual_seed(7)
    for mask in model.patch_masks.values():
        mask.data.copy_(torch.rand(mask.shape, generator=generator))
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.requires_grad_(number % 3 != 0)
        if number % 3 == 1:
            parameter.grad = torch.full_like(parameter, float(number))
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    return Snapshot(model)


def random_states() -> dict[str, Any]:
    """State of every global random number generator, comparable with ``==``."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, tuple(keys.tolist()), tuple(rest)),  # type: ignore[union-attr]
        "torch": tuple(torch.get_rng_state().tolist()),
    }


def _remember(parameter: nn.Parameter) -> _Parameter:
    grad = parameter.grad
    return _Parameter(
        parameter,
        parameter.data_ptr(),
        parameter.detach().clone(),
        parameter.requires_grad,
        grad,
        None if grad is None else grad.clone(),
    )


def _assert_same(name: str, before: _Parameter, now: nn.Parameter) -> None:
    assert now is before.parameter, f"{name} is another object"
    assert now.data_ptr() == before.storage, f"{name} lies elsewhere"
    torch.testing.assert_close(
        now.detach(), before.content, rtol=0, atol=0, equal_nan=True, msg=f"{name} changed"
    )
    assert now.requires_grad == before.requires_grad, f"requires_grad of {name} changed"
    assert now.grad is before.grad, f"gradient of {name} is another one"
    if before.grad_content is not None:
        assert now.grad is not None and torch.equal(now.grad, before.grad_content), name


def _wrappers(model: PatchableModel) -> list[tuple[str, nn.Module]]:
    return [(wrapper.module_name, wrapper) for wrapper in sorted(model.wrappers, key=str)]


def _count_hooks(model: PatchableModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )
