"""Put a model's weights and a search's caches where a plan wants them, and undo it afterwards.

Engines read the weights of a block through `Placement.blocks`, which loads them into memory; hooks do
the same for the model's own forward. On a CPU, whatever may leave memory is in files mapped into memory,
so it is loaded when touched. A weight read without asking would still be loaded, only counted too late.
On a GPU, whatever may leave is in host memory.
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
"""Creates the sequence that holds cached tensors: anything with ``append`` and indexing."""


class Placement(Protocol):
    """Where an engine finds weights and keeps caches.

    Attributes:
        blocks: blocks by layer, with ``attn``, ``mlp`` and norms as in TransformerLens.
        tensors: creates a sequence of cached tensors.
        passes: bytes that passes may take; ``None`` for the default.
        moves: whether weights or caches move in and out of memory.
    """

    moves: bool
    blocks: Sequence[Any]
    tensors: Tensors
    passes: int | None

    def unembedding(self) -> None:
        """Load the unembedding, which is about to be read."""
        ...

    def clear(self) -> None:
        """Release the caches made so far, which are no longer needed."""
        ...


class InPlace:
    """A placement that leaves everything where it is."""

    def __init__(self, model: PatchableModel) -> None:
        self.blocks: Sequence[Any] = model.blocks
        self.tensors: Tensors = list
        self.passes: int | None = None
        self.moves = False

    def unembedding(self) -> None:
        """See `Placement`."""

    def clear(self) -> None:
        """See `Placement`."""


class Planned:
    """A placement that follows a plan; created by `placed`.

    Args:
        model: the model that owns the weights in ``units``.
        plan: what stays in memory.
        units: what moves in and out of memory, by name.
        put: wraps a cached tensor in an item.
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
        self.moves = bool(units) or not plan.caches_stay

    @property
    def moved(self) -> int:
        """Bytes loaded into memory so far."""
        return self.window.brought

    def use(self, name: str) -> None:
        """Load a unit, which is about to be read."""
        if name in self._units:
            self.window.use(self._units[name])

    def unembedding(self) -> None:
        """See `Placement`."""
        self.use("unembed")

    def clear(self) -> None:
        """See `Placement`."""
        self.window.clear()


class _Block:
    """A block whose weights are loaded into memory when its attention or MLP is accessed."""

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
    """Place the model's weights as ``plan`` says for the length of the ``with`` block.

    Afterwards every parameter is the same object with the same values in the same place.

    Args:
        model: a borrowed transformer, on the CPU or on ``device``.
        plan: a plan from `plan_memory`.
        device: device that computes the products.
        spill: folder for whatever does not stay in memory; by default that of temporary files.
        copies: whether to copy weights to ``device`` instead of mapping them; ``None`` copies to GPUs.

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
    """Make a module's own forward load its weights."""
    hook = module.register_forward_pre_hook(lambda *_: placement.use(name))
    stack.callback(hook.remove)


def _paged(unit: Unit, folder: Path, stack: ExitStack) -> Pages:
    """Map the weights of a unit from files: the files they are already mapped from, or new ones."""
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
    """Move the parameters and buffers that stay in memory to ``device`` until ``stack`` closes."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
                stack.callback(module._buffers.__setitem__, name, buffer)
    for parameter in model.parameters():
        if parameter not in but and parameter.device != device:
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = parameter.data.to(device)
