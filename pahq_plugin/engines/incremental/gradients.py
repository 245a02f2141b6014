"""Derivatives of the loss along all edges into a stage, from one backward pass over the kept edges.

To first order, removing an edge changes the loss by minus the inner product of the gradient at its
destination's input and the (now - ablated) output of its source:

1. *Backwards*, from the output to the stage. The gradient at a unit's output is the sum of the
   gradients at the inputs that read it over kept edges; autograd takes it to the unit's own inputs.
   Only destinations that are needed take part, each at the positions where it is needed.
2. *Along the edges.* Gradients are projected onto each head's d_head, where the head's value mix z is
   stored, so that no edge has a tensor of width d_model.

With the gradient at the clean state this is edge attribution patching (Syed et al. 2023, arXiv
2310.10348). Other vectors at the output than the gradient, one per *line*, are taken back in the same
pass: probes of the loss's curvature (see `Readout.derivatives`), and gradients at another state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.kept_graph import Stage
from pahq_plugin.engines.incremental.positions import Positions
from pahq_plugin.engines.incremental.readout import Readout
from pahq_plugin.engines.incremental.rows import Rows
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.models.blocks import normalise


@dataclass(frozen=True)
class Point:
    """A state at which derivatives are taken: a row of a pass, or the present state without one.

    It may differ from the present state in edges into the stage that is asked for, and in nothing
    before that stage.
    """

    rows: Rows | None = None
    row: int = 0

    def inputs(
        self, state: BatchState, at: int, slot: int, heads: tuple[int, ...], positions: Positions
    ) -> Tensor:
        """Return inputs of some destinations, ``[head, batch, pos, d_model]``."""
        if self.rows is None:
            return torch.stack(state.inputs(at, slot, heads, positions))
        return self.rows.inputs(at, slot, heads, positions, slice(self.row, self.row + 1))[:, 0]


@dataclass(frozen=True)
class Gradient:
    """Derivatives with respect to the inputs of some destinations of one stage.

    Attributes:
        slot, heads: which destinations.
        positions: positions of ``values``; elsewhere the derivative is 0.
        values: ``[head, line, batch, pos, d_model]``.
    """

    slot: int
    heads: tuple[int, ...]
    positions: Positions
    values: Tensor


class Backward:
    """One backward pass on the prompts of one batch.

    Args:
        state: the present state.
        readout: the loss of these prompts.
        points: states at which the mean loss is differentiated, one line each.
        probes: standard normal numbers for probes at the first point, one line each, see
            `Readout.derivatives`; ``[probe, batch, (pos,) vocab]`` or ``None``.
        work_bytes: approximate limit on the bytes of temporaries.
    """

    def __init__(
        self,
        state: BatchState,
        readout: Readout,
        points: Sequence[Point],
        probes: Tensor | None,
        work_bytes: int,
    ) -> None:
        self._state = state
        self._graph = state.graph
        self._readout = readout
        self._points = points
        self._probes = probes
        self._lines = [*range(len(points)), *([0] * (0 if probes is None else len(probes)))]
        self._work_bytes = work_bytes
        self._at_outputs: dict[int, Tensor] = {}  # by stage, see `_pass_on`
        self._factors: dict[int, Tensor] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def along_edges(self, at: int) -> Tensor:
        """Compute the first-order change of each line's value when an edge into stage ``at`` is removed,
        for each prompt: ``[line, batch, slot, head, pos or 1, source]`` in FP32 or the model's dtype.
        Of the mean loss this is each prompt's share."""
        graph = self._graph
        batch = self._state.now.embedding.shape[0]
        found = self._state.now.embedding.new_zeros(
            (len(self._lines), batch, *graph.kept[at].shape), dtype=self._state.model.cfg.dtype
        )
        for stage in reversed(range(at, len(graph.stages))):
            for gradient in self._at_inputs(stage):
                if stage > at:
                    self._pass_on(stage, gradient, at)
                else:
                    self._inner_products(at, gradient, found)
            self._at_outputs.pop(stage, None)
        return found

    # From outputs of units to their inputs ---------------------------------------------------------

    def _at_inputs(self, at: int) -> Iterator[Gradient]:
        """Yield the gradients at the needed inputs of a stage's units."""
        stage, graph = self._graph.stages[at], self._graph
        if stage.kind == "output":
            final = self._inputs(at, 0, (0,), graph.outputs)[0, : len(self._points)]
            lines = self._readout.derivatives(final, self._probes)
            yield Gradient(0, (0,), graph.outputs, lines[None])
            return
        needs = graph.needs(at)
        heads = tuple(int(h) for h in np.flatnonzero(needs.any(axis=(0, 2))))
        if at not in self._at_outputs or not heads:
            return
        # A head's output is needed where its query is, or where its joint input may be read.
        positions = graph.sets.of(needs[0].any(axis=0))
        for some in self._parts(stage, heads):
            after = positions.cut(self._at_outputs[at][list(some)], graph.sets.all)
            if stage.kind == "mlp":
                yield self._through_mlp(at, stage, positions, after)
            else:
                yield from self._through_heads(at, stage, some, positions, after)

    def _parts(self, stage: Stage, heads: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield heads in parts whose inputs and gradients fit in the budget."""
        cfg = self._state.model.cfg
        tokens = self._state.now.embedding[..., 0].numel() * len(self._lines)
        one = 4 * stage.slots * tokens * cfg.d_model * cfg.dtype.itemsize
        size = max(1, self._work_bytes // one)
        for first in range(0, len(heads), size):
            yield heads[first : first + size]

    def _inputs(self, at: int, slot: int, heads: tuple[int, ...], positions: Positions) -> Tensor:
        """Return the inputs of some destinations on each line, ``[head, line, batch, pos, d_model]``."""
        with torch.inference_mode():
            each = [point.inputs(self._state, at, slot, heads, positions) for point in self._points]
        return torch.stack([each[point] for point in self._lines], dim=1)

    def _through_mlp(self, at: int, stage: Stage, positions: Positions, after: Tensor) -> Gradient:
        x = self._inputs(at, 0, (0,), positions).requires_grad_()
        block = self._state.own.blocks[stage.layer]
        with torch.enable_grad():
            y = block.mlp(normalise(block.ln2, x[0].flatten(0, 1))).unflatten(0, x.shape[1:3])
        return Gradient(0, (0,), positions, *torch.autograd.grad(y, x, after[0]))

    def _through_heads(
        self, at: int, stage: Stage, heads: tuple[int, ...], positions: Positions, after: Tensor
    ) -> Iterator[Gradient]:
        everywhere = self._graph.sets.all
        split = stage.slots == 3
        held = [positions if split and slot == 0 else everywhere for slot in range(stage.slots)]
        x = [self._inputs(at, slot, heads, held[slot]).requires_grad_() for slot in range(stage.slots)]
        with torch.enable_grad():
            z = self._mixes(stage, heads, x, held, positions)
        for slot, values in enumerate(torch.autograd.grad(z, x, after)):
            yield Gradient(slot, heads, held[slot], values)

    def _mixes(
        self,
        stage: Stage,
        heads: tuple[int, ...],
        inputs: Sequence[Tensor],
        held: Sequence[Positions],
        positions: Positions,
    ) -> Tensor:
        """Compute the value mixes of heads from their inputs by slot, ``[head, line, batch, pos,
        d_head]``."""
        state, everywhere = self._state, self._graph.sets.all
        math = state.attention[stage.layer]
        made: dict[str, Tensor] = {}
        for slot, x in enumerate(inputs):
            for letter, y in state.projected(stage, slot, heads, x, state.own).items():
                wanted = positions if letter == "q" else everywhere
                made[letter] = math.rotate(wanted.cut(y, held[slot]), letter, wanted.index)
        return math.mix(made["q"], made["k"], made["v"], list(heads), positions.index)

    # From inputs to the outputs of earlier units ---------------------------------------------------

    def _pass_on(self, at: int, gradient: Gradient, first: int) -> None:
        """Add a gradient at inputs of stage ``at`` to those at the outputs that they read over kept
        edges, of stages from ``first`` on: ``[head, line, batch, pos, d_head or d_model]``, at all
        positions."""
        graph, everywhere = self._graph, self._graph.sets.all
        for earlier in range(first, at):
            sources = graph.sources_of(earlier)
            if sources[0] >= graph.stages[at].n_sources:
                break
            kept = graph.kept[at][gradient.slot, list(gradient.heads)][..., sources]
            read = [int(i) for i in np.flatnonzero(kept.any(axis=(0, 1)))]
            if not read:
                continue
            weights = torch.from_numpy(kept[..., read]).to(gradient.values)  # [dest, pos or 1, source]
            total = _summed(gradient.values, weights, gradient.positions)
            if self._is_head(earlier):
                layer = graph.stages[earlier].layer
                weight = self._state.own.weight(layer, "W_O", read)
                total = (total.flatten(1, 3) @ weight.mT).unflatten(1, total.shape[1:4])
            if earlier not in self._at_outputs:
                shape = (len(sources), *total.shape[1:3], len(everywhere), total.shape[-1])
                self._at_outputs[earlier] = total.new_zeros(shape)
            into = self._at_outputs[earlier]
            if gradient.positions is everywhere:
                into.index_add_(0, torch.tensor(read, device=into.device), total)
            else:
                for i, source in enumerate(read):
                    into[source].index_add_(2, gradient.positions.index, total[i])

    def _is_head(self, stage: int) -> bool:
        return stage >= 0 and self._graph.stages[stage].kind == "head"

    # Along edges -----------------------------------------------------------------------------------

    def _inner_products(self, at: int, gradient: Gradient, found: Tensor) -> None:
        """Write minus the products of a gradient with (now - ablated) of every source of stage ``at``
        to ``found``, see `along_edges`."""
        graph, positions = self._graph, gradient.positions
        heads, lines = gradient.values.shape[:2]
        each = positions.index if graph.positional else positions.index[:1]
        values = gradient.values.permute(2, 3, 0, 1, 4)  # [batch, pos, head, line, d_model]
        if not graph.positional:
            values = values.permute(0, 2, 3, 1, 4)[:, None]
        values = values.flatten(4).flatten(2, 3)  # [batch, pos or 1, head * line, (pos *) d_model]
        n_sources = graph.stages[at].n_sources
        for columns, taken in self._state.differences.blocks(n_sources, positions):
            taken = taken.permute(1, 2, 0, 3)
            if not graph.positional:
                taken = taken.transpose(1, 2)[:, None]
            terms = values @ taken.flatten(3).mT  # [batch, pos or 1, head * line, source]
            terms = terms.unflatten(2, (heads, lines)).permute(2, 3, 0, 1, 4).neg()
            for head, own in zip(gradient.heads, terms, strict=True):
                into = found[:, :, gradient.slot, head, :, columns]
                if graph.positional:
                    into.index_copy_(2, each, own)
                else:
                    into.copy_(own)


def _summed(values: Tensor, weights: Tensor, positions: Positions) -> Tensor:
    """Sum gradients ``[dest, line, batch, pos, d_model]`` over the destinations that read each source,
    ``[source, line, batch, pos, d_model]``; weights are ``[dest, all pos or 1, source]``."""
    if weights.shape[1] == 1:
        return torch.tensordot(weights[:, 0].T, values, dims=1)
    return torch.einsum("nlbpd,nps->slbpd", values, weights[:, positions.array])
