"""A model's weights and a search's caches put where a plan wants them, and given back.

What asks for weights of a block asks `Placement.blocks`, by which they come into memory; the model's own
forward does so by hooks. On a CPU, what may go lies in files mapped into memory: it comes by being
touched, and if something were to read a weight unasked, it would only be counted too late. On a GPU,
what may go lies in host memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pahq_plugin.engines.placement.plan import Plan, Unit, units_of
from pahq_plugin.engines.placement.window import Copied, Item, Lent, Pages, Shelf, Spilled, Window
from pahq_plugin.host import PatchableModel
from pahq_plugin.system.mapped import let_go_if_unchanged, spilled

Tensors = Callable[[Iterable[Tensor]], Any]
"""Makes the sequence that holds cached tensors: anything with ``append`` and an index."""


class Placement(Protocol):
    """Where an engine finds weights, and keeps caches.

    Attributes:
        blocks: by layer, with ``attn``, ``mlp`` and norms as TransformerLens has them.
        tensors: makes a sequence of cached tensors.
        passes: bytes that passes may take; ``None`` for what they usually do.
    """

    blocks: Sequence[Any]
    tensors: Tensors
    passes: int | None

    def unembedding(self) -> None:
        """The unembedding is about to be read."""
        ...

    def clear(self) -> None:
        """The caches made so far are no longer needed."""
        ...


class InPlace:
    """Everything stays where it is."""

    def __init__(self, model: PatchableModel) -> None:
        self.blocks: Sequence[Any] = model.blocks
        self.tensors: Tensors = list
        self.passes: int | None = None

    def unembedding(self) -> None:
        """See `Placement`."""

    def clear(self) -> None:
        """See `Placement`."""


class Planned:
    """What a plan lets come and go; use `placed`.

    Args:
        model: whose weights are in `units`.
        plan: what stays.
        units: what comes and goes, by name.
        put: makes an item of a cached tensor.
    """

    def __init__(
        self,
        model: PatchableModel,
        plan: Plan,
        units: dict[str, Item],
        put: Callable[[Tensor], Spilled | Copied],
    ) -> None:
        self._units = units
        self.window = Window(plan.window)
        self.blocks: Sequence[Any] = [
            _Block(block, f"blocks.{layer}", self.use) for layer, block in enumerate(model.blocks)
        ]
        self.tensors: Tensors = (
            list if plan.caches_stay else lambda tensors: Shelf(self.window, put, tensors)
        )
        self.passes: int | None = plan.passes

    @property
    def moved(self) -> int:
        """Bytes that came into memory so far."""
        return self.window.brought

    def use(self, name: str) -> None:
        """A unit is about to be read."""
        if name in self._units:
            self.window.use(self._units[name])

    def unembedding(self) -> None:
        """See `Placement`."""
        self.use("unembed")

    def clear(self) -> None:
        """See `Placement`."""
        self.window.clear()


class _Block:
    """A block whose weights come into memory when its attention or MLP is asked for."""

    def __init__(self, block: Any, name: str, use: Callable[[str], None]) -> None:
        self._block, self._name, self._use = block, name, use

    @property
    def attn(self) -> Any:
        self._use(f"{self._name}.attn")
        return self._block.attn

    @property
    def mlp(self) -> Any:
        self._use(f"{self._name}.mlp")
        return self._block.mlp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


@contextmanager
def placed(
    model: PatchableModel,
    plan: Plan,
    device: torch.device,
    spill: Path | None = None,
    copies: bool | None = None,
) -> Iterator[Planned]:
    """The model's weights where ``plan`` wants them, for as long as the ``with`` block lasts.

    Afterwards every parameter is the same object with the same values, and where it was.

    Args:
        model: a borrowed transformer, on the CPU or on ``device``.
        plan: of `plan_memory`.
        device: where products are made.
        spill: folder for what does not stay in memory; by default that of temporary files.
        copies: whether what comes is copied to ``device``, instead of mapped; ``None`` for on a GPU.

    Raises:
        OSError: the disk is full.
    """
    folder = spill or Path(tempfile.gettempdir())
    away = [unit for unit in units_of(model) if unit.name not in plan.stay]
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        if not (device.type != "cpu" if copies is None else copies):
            items: dict[str, Item] = {unit.name: _paged(unit, folder, stack) for unit in away}
            placement = Planned(model, plan, items, lambda x: Spilled(x, folder))
        else:
            lent = {unit.name: _lent(unit, device, stack) for unit in away}
            _move(model, device, {p for unit in away for p in unit.parameters}, stack)
            stack.callback(setattr, model.cfg, "device", model.cfg.device)
            model.cfg.device = str(device)  # where TransformerLens sends activations
            placement = Planned(model, plan, dict(lent), Copied)
        stack.callback(placement.window.clear)
        for name in ("embed", "unembed"):
            _announce(getattr(model.wrapped_model, name), name, placement, stack)
        for layer, block in enumerate(model.blocks):
            _announce(block.attn, f"blocks.{layer}.attn", placement, stack)
            if not model.cfg.attn_only:
                _announce(block.mlp, f"blocks.{layer}.mlp", placement, stack)
        yield placement


def _announce(module: nn.Module, name: str, placement: Planned, stack: ExitStack) -> None:
    """Have a module's own forward ask for its weights."""
    hook = module.register_forward_pre_hook(lambda *_: placement.use(name))
    stack.callback(hook.remove)


def _paged(unit: Unit, folder: Path, stack: ExitStack) -> Pages:
    """The weights of a unit in files: their own, where they are mapped from one, or new ones."""
    for parameter in unit.parameters:
        if not let_go_if_unchanged(parameter):
            parameter.data = spilled(parameter.data, folder)
            stack.callback(_load, parameter)
    return Pages([parameter.data for parameter in unit.parameters])


def _load(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data.clone()


def _lent(unit: Unit, device: torch.device, stack: ExitStack) -> Lent:
    item = Lent(unit.parameters, device)
    stack.callback(item.give_back)
    return item


def _move(model: PatchableModel, device: torch.device, but: set[nn.Parameter], stack: ExitStack) -> None:
    """Move the parameters and buffers that stay in memory to ``device``, until ``stack`` ends."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
                stack.callback(module._buffers.__setitem__, name, buffer)
    for parameter in model.parameters():
        if parameter not in but and parameter.device != device:
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = parameter.data.to(device)
