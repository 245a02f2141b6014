"""Many states of the model at once: rows that differ from the present state in a few removed edges.

1. The input of each destination whose edges differ changes by a given amount per row.
2. Step by step (`KeptGraph.cone`): input = present input + changes of the dirty sources that feed it;
   the unit is evaluated on all rows; its output minus the present output is the next change.
3. The last step gives the rows' logits.

Only dirty heads, only their dirty projections, and only positions that differ and are read are
computed; all else comes from the present state. Tensors are unit-major,
``[head, candidate, batch, pos, d]``, so that heads multiply with their own weights in one product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engine.products import Products
from pahq_plugin.engine.state import BatchState, Read, kept_pattern, letters
from pahq_plugin.graph import Bools, Ints, Place, Slot, Stage, Step
from pahq_plugin.host.blocks import unembed


@dataclass(frozen=True)
class Change:
    """How the outputs of sources of one step differ from the present state.

    Attributes:
        sources: their indices.
        positions: positions at which they differ.
        factor: new minus present z ``[head, candidate, batch, pos, d_head]``, or output ``[1,
            candidate, batch, pos, d_model]``.
        layer: the block of the heads that have to be projected by W_O; ``None`` for an MLP.
        heads: those heads.
    """

    sources: Ints
    positions: Ints
    factor: Tensor
    layer: int | None
    heads: tuple[int, ...]

    def only(self, row: int) -> Change:
        """The same on one row."""
        at = min(row, self.factor.shape[1] - 1)  # one row stands for all where none differs
        return replace(self, factor=self.factor[:, at : at + 1])


@dataclass(frozen=True)
class Start:
    """A changed input: ``[candidate, batch, pos, d_model]`` at ``positions``."""

    positions: Ints
    delta: Tensor


class Rows:
    """One pass over the cone of a change.

    Args:
        state: the present state of one batch.
        steps: the cone, from `KeptGraph.cone`.
        starts: the changed inputs.
        n_rows: number of candidates.
        products: precision of the weight products; the model's own by default. Only rows in the
            model's own precision may be committed.
    """

    def __init__(
        self,
        state: BatchState,
        steps: Sequence[Step],
        starts: Mapping[Place, Start],
        n_rows: int,
        products: Products | None = None,
    ) -> None:
        self.state = state
        self._products = products or state.own
        self.n_rows = n_rows
        self._starts = starts
        self._steps = steps
        self._changes: list[Change] = []
        self._dirty: list[tuple[int, int, list[int], Ints]] = []
        self.final: Tensor | None = None
        """Final residual streams at the output's positions, ``[candidate, batch, pos, d_model]``."""
        for step in steps:
            self._run(step)

    def commit(self, row: int) -> None:
        """Make ``row`` the present state. Only for rows in the model's own precision."""
        for at, slot, heads, positions in self._dirty:
            self._commit_reads(at, slot, heads, positions, row)
        for step, change in zip(self._steps, self._changes, strict=False):
            stage = self.state.graph.stages[step.stage]
            where = self.state.index(step.positions)
            for i, head in enumerate(step.heads):
                value = change.factor[i, min(row, change.factor.shape[1] - 1)]
                self.state.add_to_source(stage.first_source + head, where, value)

    def _commit_reads(self, at: int, slot: int, heads: list[int], positions: Ints, row: int) -> None:
        """Bring what dirty destinations read up to date."""
        state = self.state
        now = [read.at(positions) for read in state.reads(at, slot, heads, positions)]
        x = self._new_inputs(at, slot, heads, positions, now, row)
        stage, ys = state.graph.stages[at], {}
        if stage.kind == "head":
            ys = state.projected(stage, slot, heads, x, state.own)
        for i, head in enumerate(heads):
            parts = {letter: y[i, 0] for letter, y in ys.items()}
            state.update_read(at, slot, head, Read(positions, x[i, 0], parts))

    # Steps ---------------------------------------------------------------------------------------

    def _run(self, step: Step) -> None:
        stage = self.state.graph.stages[step.stage]
        if stage.kind == "head":
            self._run_heads(step, stage)
        elif stage.kind == "mlp":
            self._run_mlp(step, stage)
        else:
            self._run_output(step, stage)

    def _run_heads(self, step: Step, stage: Stage) -> None:
        state, heads = self.state, list(step.heads)
        everywhere = np.arange(state.graph.shape.length)
        held = {"q": step.positions, "k": everywhere, "v": everywhere}
        math = state.attention[stage.layer]
        made: dict[str, Tensor] = {}
        for which, slot in enumerate(step.slots):
            made_here = letters(stage, which)
            wanted = held[made_here] if stage.slots == 3 else everywhere
            reads = state.reads(step.stage, which, heads, wanted)
            new = self._new_projections(step, which, slot, [reads[m] for m in slot.members])
            for letter in made_here:
                now = torch.stack([read.at(held[letter]).y[letter] for read in reads])[:, None]
                y = _merged(now, new.get(letter), slot, held[letter], state, self.n_rows)
                made[letter] = math.rotate(y, letter, state.index(held[letter]))
        index = torch.tensor(heads, device=made["q"].device)
        where = state.index(step.positions)
        z = math.mix(made["q"], made["k"], made["v"], index, where)
        present = state.now.z[stage.layer][index].index_select(2, where).to(z.dtype)
        sources, change = stage.first_source + np.array(heads), z - present[:, None]
        self._changes.append(Change(sources, step.positions, change, stage.layer, step.heads))

    def _new_projections(
        self, step: Step, which: int, slot: Slot, reads: Sequence[Read]
    ) -> dict[str, Tensor]:
        """Projections of the dirty inputs, ``[member, candidate, batch, pos, d_head]`` by letter."""
        if not slot.members:
            return {}
        stage = self.state.graph.stages[step.stage]
        heads = [step.heads[m] for m in slot.members]
        now = [read.at(slot.positions) for read in reads]
        x = self._new_inputs(step.stage, which, heads, slot.positions, now)
        return self.state.projected(stage, which, heads, x, self._products, now)

    def _run_mlp(self, step: Step, stage: Stage) -> None:
        state, positions = self.state, step.slots[0].positions
        now = [read.at(positions) for read in state.reads(step.stage, 0, [0], positions)]
        x = self._new_inputs(step.stage, 0, [0], positions, now)
        present = state.now.mlp[stage.layer].index_select(1, state.index(positions)).to(x.dtype)
        new = state.mlp(stage.layer, x[0], now[0], present, self._products)[None]
        sources, change = np.array([stage.first_source]), new - present[None, None]
        self._changes.append(Change(sources, positions, change, None, ()))

    def _run_output(self, step: Step, stage: Stage) -> None:
        state = self.state
        positions = np.flatnonzero(state.graph.shape.outputs)
        now = [read.at(positions) for read in state.reads(step.stage, 0, [0], positions)]
        self.final = self._new_inputs(step.stage, 0, [0], positions, now)[0]

    # Inputs --------------------------------------------------------------------------------------

    def _new_inputs(
        self,
        at: int,
        slot: int,
        heads: Sequence[int],
        positions: Ints,
        now: Sequence[Read],
        row: int | None = None,
    ) -> Tensor:
        """Inputs on all rows, or on one, ``[head, candidate, batch, pos, d_model]``."""
        if row is None:
            self._dirty.append((at, slot, list(heads), positions))
        rows = slice(None) if row is None else slice(row, row + 1)
        x = torch.stack([read.x for read in now])[:, None]
        x = x.expand(-1, self.n_rows if row is None else 1, -1, -1, -1).clone()
        for i, head in enumerate(heads):
            start = self._starts.get((at, slot, head))
            if start is not None:
                x[i] += _aligned(start.delta[rows], start.positions, positions)
        kept = self.state.graph.kept[at][slot, list(heads)]  # [head, pos or 1, source]
        for change in self._changes:
            if change.sources[0] < kept.shape[-1]:  # not another group of the same stage
                one = change if row is None else change.only(row)
                self._add_change(x, one, kept[:, :, change.sources], positions)
        return x

    def _add_change(self, x: Tensor, change: Change, kept: Bools, positions: Ints) -> None:
        """Add what dirty sources contribute to ``x``, once for each distinct set of kept edges."""
        patterns: dict[bytes, list[int]] = {}
        for i in range(len(kept)):
            pattern = kept_pattern(kept[i], positions)
            if pattern.any():
                patterns.setdefault(pattern.tobytes(), []).append(i)
        for members in patterns.values():
            pattern = kept_pattern(kept[members[0]], positions)
            term = self._contribution(change, pattern, positions)
            for i in members:
                x[i] += term

    def _contribution(self, change: Change, pattern: Bools, positions: Ints) -> Tensor:
        """Change of an input that reads the sources in ``pattern [pos or 1, source]``, ``[candidate,
        batch, pos, d_model]`` at ``positions``."""
        chosen = np.flatnonzero(pattern.any(axis=0)).tolist()
        factor = _aligned(change.factor[chosen], change.positions, positions)
        if pattern.shape[0] > 1:
            weights = torch.from_numpy(pattern[:, chosen].T.copy()).to(factor)
            factor = factor * weights[:, None, None, :, None]
        if change.layer is None:
            return factor[0]
        heads = [change.heads[i] for i in chosen]
        out = self._products.output(change.layer, heads, factor.flatten(1, 3))
        return out.sum(dim=0).unflatten(0, factor.shape[1:4])


def _merged(
    now: Tensor, new: Tensor | None, slot: Slot, held: Ints, state: BatchState, n_rows: int
) -> Tensor:
    """Present projections ``[head, 1, batch, pos, d_head]`` with the dirty ones put in their place."""
    if new is None:
        return now
    if len(slot.members) == now.shape[0] and len(slot.positions) == len(held):
        return new
    merged = now.expand(-1, n_rows, -1, -1, -1).clone()
    at = state.index(np.searchsorted(held, slot.positions))
    for i, member in enumerate(slot.members):
        merged[member].index_copy_(2, at, new[i])
    return merged


def _aligned(x: Tensor, have: Ints, want: Ints) -> Tensor:
    """``x [..., pos, d]`` known at positions ``have``, at positions ``want``; 0 where it is not known
    since nothing changes there."""
    if len(have) == len(want) and bool((have == want).all()):
        return x
    inside = np.isin(want, have, assume_unique=True)
    at = np.searchsorted(have, want[inside])
    chosen = x.index_select(-2, torch.from_numpy(at).to(x.device))
    if bool(inside.all()):
        return chosen
    out = x.new_zeros((*x.shape[:-2], len(want), x.shape[-1]))
    return out.index_copy(-2, torch.from_numpy(np.flatnonzero(inside)).to(x.device), chosen)


def row_logits(state: BatchState, final: Tensor, drops_position: bool) -> Tensor:
    """Logits of final residual streams.

    Args:
        state: whose model unembeds them.
        final: ``[candidate, batch, pos, d_model]``.
        drops_position: whether ``out_slice`` picks one position and drops its axis.

    Returns:
        ``[candidate, batch, (pos,) vocab]``.
    """
    logits = unembed(state.model, final)
    return logits[:, :, 0] if drops_position else logits
