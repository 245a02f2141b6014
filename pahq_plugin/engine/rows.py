"""Many states of the model at once: rows that differ from the present state in a few removed edges.

1. The input of each destination whose edges differ changes by a given amount per row.
2. Step by step (`KeptGraph.cone`): input = present input + changes of the dirty sources that feed it;
   the unit is evaluated on all rows; its output minus the present output is the next change.
3. The last step gives the rows' logits.

Only dirty heads, only their dirty projections, and only tokens that differ and are read are
computed; all else comes from the present state. Tensors are unit-major,
``[head, candidate, batch, pos, d]``, so that heads multiply with their own weights in one product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_plugin.engine.products import Products
from pahq_plugin.engine.state import BatchState, Read, letters
from pahq_plugin.graph import Feed, Place, Slot, Stage, Step
from pahq_plugin.positions import Positions

WORK_BYTES = 8 * 2**20
"""Wide tensors that live only within a step are made in parts of about this size."""


@dataclass(frozen=True)
class Change:
    """How the outputs of sources of one step differ from the present state.

    Attributes:
        step: the step, which says where and which heads.
        layer: the block of the heads that have to be projected by W_O; ``None`` for an MLP.
        factor: new minus present z ``[head, candidate, batch, pos, d_head]``, or output ``[1,
            candidate, batch, pos, d_model]``.
    """

    step: Step
    layer: int | None
    factor: Tensor


@dataclass(frozen=True)
class Start:
    """A changed input: ``[candidate, batch, pos, d_model]`` at ``positions``."""

    positions: Positions
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
        self._changes: list[Change] = []
        self._dirty: list[tuple[int, int, tuple[int, ...], Positions]] = []
        self.final: Tensor | None = None
        """Final residual streams at the output's positions, ``[candidate, batch, pos, d_model]``."""
        for step in steps:
            self._run(step)

    def commit(self, row: int) -> None:
        """Make ``row`` the present state. Only for rows in the model's own precision."""
        for at, slot, heads, positions in self._dirty:
            self._commit_reads(at, slot, heads, positions, row)
        for change in self._changes:
            stage = self.state.graph.stages[change.step.stage]
            for i, head in enumerate(change.step.heads):
                value = change.factor[i, min(row, change.factor.shape[1] - 1)]
                self.state.add_to_source(stage.first_source + head, change.step.positions.index, value)

    def _commit_reads(
        self, at: int, slot: int, heads: tuple[int, ...], positions: Positions, row: int
    ) -> None:
        """Bring what dirty destinations read up to date."""
        state = self.state
        reads = state.reads(at, slot, heads, positions)
        x = self._inputs(at, slot, heads, positions, reads, row)
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
            self._run_output(step)

    def _run_heads(self, step: Step, stage: Stage) -> None:
        state, everywhere = self.state, self.state.graph.sets.all
        held = {"q": step.positions, "k": everywhere, "v": everywhere}
        math = state.attention[stage.layer]
        made: dict[str, Tensor] = {}
        for which, slot in enumerate(step.slots):
            made_here = letters(stage, which)
            wanted = held[made_here] if stage.slots == 3 else everywhere
            reads = state.reads(step.stage, which, step.heads, wanted)
            new = self._new_projections(step, which, slot, reads)
            for letter in made_here:
                y = _merged(reads, letter, new.get(letter), slot, held[letter], self.n_rows)
                made[letter] = math.rotate(y, letter, held[letter].index)
        z = math.mix(made["q"], made["k"], made["v"], list(step.heads), step.positions.index)
        present = torch.stack([state.now.z[stage.layer][head] for head in step.heads])
        present = step.positions.cut(present, everywhere).to(z.dtype)
        self._changes.append(Change(step, stage.layer, z - present[:, None]))

    def _new_projections(
        self, step: Step, which: int, slot: Slot, reads: Sequence[Read]
    ) -> dict[str, Tensor]:
        """Projections of the dirty inputs, ``[member, candidate, batch, pos, d_head]`` by letter.

        Inputs are wide: a few heads are worked on at a time.
        """
        if not slot.members:
            return {}
        state, stage = self.state, self.state.graph.stages[step.stage]
        parts = []
        for members in _chunks(slot.members, self._input_bytes(slot.positions)):
            heads = tuple(step.heads[m] for m in members)
            dirty = [reads[m] for m in members]
            x = self._new_inputs(step.stage, which, heads, slot.positions, dirty)
            now = None if self._products is state.own else (dirty, slot.positions)
            parts.append(state.projected(stage, which, heads, x, self._products, now))
        if len(parts) == 1:
            return parts[0]
        return {letter: torch.cat([part[letter] for part in parts]) for letter in parts[0]}

    def _input_bytes(self, positions: Positions) -> int:
        """Bytes of one destination's input on all rows."""
        embedding = self.state.now.embedding
        return (
            self.n_rows * len(positions) * embedding[:, 0].numel() * self.state.model.cfg.dtype.itemsize
        )

    def _run_mlp(self, step: Step, stage: Stage) -> None:
        state, positions = self.state, step.slots[0].positions
        reads = state.reads(step.stage, 0, (0,), positions)
        x = self._new_inputs(step.stage, 0, (0,), positions, reads)[0]
        x_now = reads[0].x_at(positions).flatten(0, 1)  # [batch * pos, d_model]
        y_now = positions.cut(state.now.mlp[stage.layer], state.graph.sets.all).to(x.dtype).flatten(0, 1)
        flat, tokens = x.flatten(1, 2), state.changing_tokens(positions)
        heads, dz = self._narrow_changes(step, stage)
        if tokens is not None:
            flat, x_now, y_now = flat[:, tokens], x_now[tokens], y_now[tokens]
            dz = None if dz is None else dz[:, tokens]
        change = torch.empty_like(flat)
        hidden = flat[0].numel() // flat.shape[-1] * state.model.cfg.d_mlp * flat.element_size()
        for rows in _chunks(range(len(flat)), hidden):  # the hidden layer is wide
            at = slice(rows[0], rows[-1] + 1)
            if dz is not None:
                new = state.own.narrow_mlp(stage.layer, flat[at], x_now, heads, dz[at])
            else:
                new = state.mlp(stage.layer, flat[at], x_now, y_now, self._products)
            torch.sub(new, y_now, out=change[at])
        if tokens is not None:
            change = torch.zeros_like(x).flatten(1, 2).index_copy_(1, tokens, change)
        self._changes.append(Change(step, None, change.unflatten(1, x.shape[1:3])[None]))

    def _narrow_changes(self, step: Step, stage: Stage) -> tuple[list[tuple[int, int]], Tensor | None]:
        """The heads that change an MLP's input and their changes of z side by side, ``[candidate,
        batch * pos, head * d_head]``; ``None`` where anything else changes it, or it would not pay."""
        positions, graph = step.slots[0].positions, self.state.graph
        feeds = [
            (change, feed)
            for change in self._changes
            for feed in graph.feeds(step.stage, 0, (0,), change.step, positions)
        ]
        heads = [
            (change.layer, change.step.heads[i])
            for change, feed in feeds
            if change.layer is not None
            for i in feed.chosen
        ]
        width = self.state.model.cfg.d_head * len(heads)
        whole = all(change.layer is not None and feed.weights is None for change, feed in feeds)
        started = (step.stage, 0, 0) in self._starts
        own = self._products is self.state.own
        if (
            not (feeds and whole and own)
            or started
            or not self.state.own.narrow_mlp.pays(stage.layer, width)
        ):
            return [], None
        parts = [self._side_by_side(change, feed, positions) for change, feed in feeds]
        return heads, torch.cat(parts, dim=-1)

    def _side_by_side(self, change: Change, feed: Feed, positions: Positions) -> Tensor:
        """Changes of z of the chosen heads, ``[candidate, batch * pos, head * d_head]``."""
        shared, known = positions.shared(change.step.positions)
        factor = _taken(change.factor[list(feed.chosen)], shared)
        if known is not None:
            shape = (*factor.shape[:-2], len(positions), factor.shape[-1])
            factor = factor.new_zeros(shape).index_copy_(-2, known, factor)
        return factor.permute(1, 2, 3, 0, 4).flatten(3).flatten(1, 2)

    def _run_output(self, step: Step) -> None:
        positions = self.state.graph.outputs
        reads = self.state.reads(step.stage, 0, (0,), positions)
        self.final = self._new_inputs(step.stage, 0, (0,), positions, reads)[0]

    # Inputs --------------------------------------------------------------------------------------

    def _new_inputs(
        self, at: int, slot: int, heads: tuple[int, ...], positions: Positions, reads: Sequence[Read]
    ) -> Tensor:
        """Inputs of dirty destinations on all rows, ``[head, candidate, batch, pos, d_model]``."""
        self._dirty.append((at, slot, heads, positions))
        return self._inputs(at, slot, heads, positions, reads, None)

    def _inputs(
        self,
        at: int,
        slot: int,
        heads: tuple[int, ...],
        positions: Positions,
        reads: Sequence[Read],
        row: int | None,
    ) -> Tensor:
        """Inputs on all rows, or on one: what is read at present plus the changes that feed it."""
        now = [read.x_at(positions) for read in reads]
        x = now[0].new_empty((len(heads), self.n_rows if row is None else 1, *now[0].shape))
        sums = [_Sum(out, present) for out, present in zip(x, now, strict=True)]
        for total, head in zip(sums, heads, strict=True):
            start = self._starts.get((at, slot, head))
            if start is not None:
                shared, known = positions.shared(start.positions)
                total.add(_taken(_row(start.delta, row), shared), known)
        for change in self._changes:
            shared, known = positions.shared(change.step.positions)
            for feed in self.state.graph.feeds(at, slot, heads, change.step, positions):
                term = self._contribution(change, feed, shared, known, row)
                for member in feed.members:
                    sums[member].add(term, known)
        for total in sums:
            total.finish()
        return x

    def _contribution(
        self, change: Change, feed: Feed, shared: Tensor | None, known: Tensor | None, row: int | None
    ) -> Tensor:
        """What the chosen sources add, ``[candidate, batch, pos, d_model]``, at the positions of the
        change that are wanted: ``shared`` among its own, ``known`` among the wanted ones."""
        factor = change.factor
        if len(feed.chosen) < len(factor):
            factor = factor[list(feed.chosen)]
        factor = _taken(_row(factor, row, axis=1), shared)
        if feed.weights is not None:
            weights = feed.weights if known is None else feed.weights[:, known]
            factor = factor * weights.to(factor.dtype)[:, None, None, :, None]
        if change.layer is None:
            return factor[0]
        heads = [change.step.heads[i] for i in feed.chosen]
        out = self._products.output(change.layer, heads, factor.flatten(1, 3))
        return out.unflatten(0, factor.shape[1:4])


class _Sum:
    """The present input of one destination plus changes, written where the inputs are gathered.

    Args:
        out: ``[candidate, batch, pos, d_model]``, not yet written.
        present: ``[batch, pos, d_model]``.
    """

    def __init__(self, out: Tensor, present: Tensor) -> None:
        self._out, self._present = out, present
        self._started = False

    def add(self, term: Tensor, known: Tensor | None) -> None:
        """Add ``term [candidate, batch, pos, d_model]`` at the positions ``known``; ``None``: at all."""
        if known is not None:
            self.finish()
            self._out.index_add_(-2, known, term.expand(len(self._out), -1, -1, -1))
        elif self._started:
            self._out += term
        else:
            torch.add(self._present, term, out=self._out)
            self._started = True

    def finish(self) -> None:
        """Write the present input where nothing has been added."""
        if not self._started:
            self._out.copy_(self._present)
            self._started = True


def _chunks(items: Sequence[int], item_bytes: int) -> list[Sequence[int]]:
    """``items`` in parts of at most about `WORK_BYTES`."""
    size = max(1, WORK_BYTES // max(1, item_bytes))
    return [items[i : i + size] for i in range(0, len(items), size)]


def _row(x: Tensor, row: int | None, axis: int = 0) -> Tensor:
    """One row of the candidates' axis, or all; a single row stands for all where none differs."""
    return x if row is None else x.narrow(axis, min(row, x.shape[axis] - 1), 1)


def _taken(x: Tensor, at: Tensor | None) -> Tensor:
    """``x [..., pos, d]`` at some positions, or as it is."""
    return x if at is None else x.index_select(-2, at)


def _merged(
    reads: Sequence[Read], letter: str, new: Tensor | None, slot: Slot, held: Positions, n_rows: int
) -> Tensor:
    """Present projections ``[head, 1, batch, pos, d_head]`` with the dirty ones put in their place."""
    if new is not None and len(slot.members) == len(reads) and slot.positions is held:
        return new
    now = torch.stack([read.y_at(letter, held) for read in reads])[:, None]
    if new is None:
        return now
    merged = now.expand(-1, n_rows, -1, -1, -1).clone()
    at = slot.positions.within(held)
    for i, member in enumerate(slot.members):
        merged[member].index_copy_(2, at, new[i])
    return merged
