"""Runs of the full graph that can be taken back: the gradient at every destination's input.

While every edge is kept, all destinations of a block read the same residual stream, so one running
tensor holds the gradient on the way back. Each unit, an attention layer or an MLP, leaves a *tape* when
it runs: the autograd graph between its inputs and its output, projections of attention left out. On the
way back

1. the gradient at a unit's output is that at the residual stream behind the unit;
2. autograd takes it to queries, keys and values, or through the MLP and its norm;
3. queries, keys and values are taken to each head's own inputs, which are the destinations;
4. the sum over the destinations is added to the stream in front of the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.source_outputs import projections
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.blocks import AttentionMath, linear_norm, normalise

Note = Callable[["Place", Tensor], None]
"""Called with destinations and the gradient at their inputs, ``[dest, batch, pos, d_model]``."""


@dataclass(frozen=True)
class Place:
    """Destinations that belong to one module of the host.

    Attributes:
        kind: ``"head"``, ``"mlp"`` or ``"output"``.
        layer: the transformer block; 0 for the output.
        slot: ``"q"``, ``"k"``, ``"v"``, or ``"attn"`` for all three in one; empty outside heads.
    """

    kind: Literal["head", "mlp", "output"]
    layer: int = 0
    slot: str = ""


class Tape(Protocol):
    """What a unit leaves behind when it runs.

    Attributes:
        output: what it adds to the residual stream, ``[batch, pos, d_model]``, bias included.
        factor: its sources' outputs as `Sources` stores them: value mixes ``[head, batch, pos, d_head]``
            or the MLP's output ``[batch, pos, d_model]``.
    """

    output: Tensor
    factor: Tensor

    def back(self, after: Tensor, note: Note) -> Tensor:
        """Take a gradient at the output, ``[batch, pos, d_model]``, to the residual stream that the unit
        reads; ``note`` gets the gradients at its destinations' inputs."""
        ...


class Attention:
    """One attention layer on the prompts of one batch."""

    opens_block = True

    def __init__(
        self, model: PatchableModel, layer: int, residual: Tensor, padding: Tensor | None
    ) -> None:
        self.layer = layer
        self.beside = False
        self.split = model.separate_qkv
        self.math = AttentionMath(model, layer, residual, padding)

    def tape(self, residual: Tensor) -> AttentionTape:
        """Run on a residual stream ``[batch, pos, d_model]``."""
        return AttentionTape(self, residual)

    def output(self, z: Tensor) -> Tensor:
        """Compute what value mixes ``[head, batch, pos, d_head]`` add to the residual stream."""
        attn = self.math.attn
        return z.permute(1, 2, 0, 3).flatten(2) @ attn.W_O.flatten(0, 1) + attn.b_O

    def outputs(self, z: Tensor) -> Tensor:
        """Compute each head's output, without bias, ``[head, batch, pos, d_model]``."""
        return torch.matmul(z.flatten(1, 2), self.math.attn.W_O).unflatten(1, z.shape[1:3])


class AttentionTape:
    """See `Tape`; ends at the projected queries, keys and values."""

    def __init__(self, unit: Attention, residual: Tensor) -> None:
        self._unit, self._residual, math = unit, residual, unit.math
        with torch.no_grad():
            made = projections(math, residual)
        self._leaves = {letter: y.requires_grad_() for letter, y in made.items()}
        where = torch.arange(residual.shape[1], device=residual.device)
        with torch.enable_grad():
            q, k, v = (math.rotate(y[:, None], x, where) for x, y in self._leaves.items())
            self._z = math.mix(q, k, v, list(range(len(q))), where)[:, 0]
        self.factor = self._z.detach()
        self.output = unit.output(self.factor)

    def back(self, after: Tensor, note: Note) -> Tensor:
        """See `Tape.back`."""
        unit, math = self._unit, self._unit.math
        weight = math.attn.W_O  # [head, d_head, d_model]
        at_z = (after @ weight.flatten(0, 1).mT).unflatten(-1, weight.shape[:2]).permute(2, 0, 1, 3)
        found = torch.autograd.grad(self._z, list(self._leaves.values()), at_z, retain_graph=True)
        heads, batch, pos, _ = at_z.shape
        normal = after.new_empty((3, heads, batch * pos, after.shape[-1]))  # behind the norm, by slot
        for own, letter, y in zip(normal, self._leaves, found, strict=True):
            torch.bmm(y.flatten(1, 2), math.weight_of(letter).mT, out=own)
        slots = ("q", "k", "v") if unit.split else ("attn",)
        normal = normal if unit.split else normal.sum(dim=0, keepdim=True)
        flat = normal.flatten(0, 1).unflatten(1, after.shape[:2])
        gradient = through_norm(math.norm, self._residual, flat)
        for slot, own in zip(slots, gradient.unflatten(0, (len(slots), -1)), strict=True):
            note(Place("head", unit.layer, slot), own)
        return gradient.sum(dim=0)


class Mlp:
    """One MLP; ``beside`` if it reads the same residual stream as its block's attention."""

    opens_block = False

    def __init__(self, model: PatchableModel, layer: int) -> None:
        self.layer = layer
        self.block: Any = model.blocks[layer]
        self.beside = model.cfg.parallel_attn_mlp

    def tape(self, residual: Tensor) -> MlpTape:
        """Run on a residual stream ``[batch, pos, d_model]``."""
        return MlpTape(self, residual)

    def output(self, factor: Tensor) -> Tensor:
        """Return what it adds to the residual stream: its output as it is."""
        return factor

    def outputs(self, factor: Tensor) -> Tensor:
        """Return its output as that of one source, ``[1, batch, pos, d_model]``."""
        return factor[None]


class MlpTape:
    """See `Tape`; ends at the residual stream."""

    def __init__(self, unit: Mlp, residual: Tensor) -> None:
        self._unit, block = unit, unit.block
        self._x = residual.detach().requires_grad_()
        with torch.enable_grad():
            self._y = block.mlp(normalise(block.ln2, self._x))
        self.output = self.factor = self._y.detach()

    def back(self, after: Tensor, note: Note) -> Tensor:
        """See `Tape.back`."""
        gradient = torch.autograd.grad(self._y, self._x, after, retain_graph=True)[0]
        note(Place("mlp", self._unit.layer), gradient[None])
        return gradient


Unit = Attention | Mlp


def units_of(model: PatchableModel, residual: Tensor, padding: Tensor | None) -> list[Unit]:
    """Return the units of a model in the order of its forward pass, on the prompts of one batch.

    Args:
        model: a model that `pahq_plugin.models.blocks.unsupported` has no objection to.
        residual: any residual stream of the prompts, ``[batch, pos, d_model]``.
        padding: the padding mask, ``[batch, offset_pos]`` or ``None``.
    """
    units: list[Unit] = []
    for layer in range(model.cfg.n_layers):
        units.append(Attention(model, layer, residual, padding))
        if not model.cfg.attn_only:
            units.append(Mlp(model, layer))
    return units


@torch.no_grad()
def run(
    units: Sequence[Unit], residual: Tensor, block_start: Tensor | None = None
) -> tuple[list[Tape], Tensor]:
    """Run consecutive units up to the output.

    Args:
        units: the last units of a model.
        residual: the stream in front of the first, ``[batch, pos, d_model]``.
        block_start: the stream in front of its block, if that differs.

    Returns:
        The tape of each unit, and the final residual stream.
    """
    tapes: list[Tape] = []
    start = residual if block_start is None else block_start
    for unit in units:
        start = residual if unit.opens_block else start
        tape = unit.tape(start if unit.beside else residual)
        residual = residual + tape.output
        tapes.append(tape)
    return tapes, residual


@torch.no_grad()
def back(
    units: Sequence[Unit],
    tapes: Sequence[Tape],
    gradient: Tensor,
    note: Note,
    added: Sequence[Tensor] | None = None,
) -> Tensor:
    """Take a gradient at the final residual stream back through the units of `run`.

    Args:
        units, tapes: of the run.
        gradient: ``[batch, pos, d_model]``.
        note: gets the gradient at the inputs of every destination, the output's apart.
        added: for each unit, a gradient that bypasses it: added at the stream in front of it.

    Returns:
        The gradient in front of the first unit; of a run from the middle of a parallel block, that in
        front of the block.
    """
    beside: Tensor | None = None  # what a parallel MLP hands to the stream in front of its block
    for i in reversed(range(len(units))):
        found = tapes[i].back(gradient, note)
        if units[i].beside:
            beside = found
        else:
            gradient = gradient + found
        if units[i].opens_block and beside is not None:
            gradient, beside = gradient + beside, None
        if added is not None:
            gradient = gradient + added[i]
    return gradient if beside is None else gradient + beside


def through_norm(norm: Any, x: Tensor, after: Tensor) -> Tensor:
    """Take gradients behind a norm, ``[dest, batch, pos, d_model]``, to its input ``x [batch, pos,
    d_model]``, which all destinations share; ``after`` is overwritten."""
    parts = linear_norm(norm)
    if parts is not None:
        return parts.pull_back_(x, after)
    each = x.expand_as(after).contiguous().requires_grad_()
    with torch.enable_grad():
        y = normalise(norm, each)
    return torch.autograd.grad(y, each, after)[0]
