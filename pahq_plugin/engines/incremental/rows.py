"""Many states of the model at once: rows that differ from the present state in a few removed edges.

1. The inputs of destinations whose edges differ change by a given amount on each row.
2. Step by step (`KeptGraph.cone`), input = present input + changes of the dirty sources that feed it.
   The unit is evaluated on all rows; its output minus the present output is the next change.
3. The last step gives the final residual streams of the rows.

Only dirty heads, only their dirty projections, and only tokens that differ and are read are computed;
the rest comes from the present state. Tensors are unit-major, ``[head, candidate, batch, pos, d]``, so
that all heads are multiplied by their own weights in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.budget import Budget
from pahq_plugin.engines.incremental.kept_graph import Feed, Place, Slot, Stage, Step
from pahq_plugin.engines.incremental.positions import Positions
from pahq_plugin.engines.incremental.products import Products, consecutive, some_heads
from pahq_plugin.engines.incremental.starts import Start
from pahq_plugin.engines.incremental.state import BatchState, letters
from pahq_plugin.engines.incremental.sums import Sum, Term


@dataclass(frozen=True)
class Change:
    """How the outputs of sources of one step differ from the present state.

    Attributes:
        step: the step, with its stage, heads and positions.
        layer: the block of the heads, whose z W_O has yet to project; ``None`` for an MLP.
        factor: new minus present z ``[head, candidate, batch, pos, d_head]``, or output ``[1,
            candidate, batch, pos, d_model]``.
    """

    step: Step
    layer: int | None
    factor: Tensor


class Rows:
    """One pass over the cone of a change.

    Args:
        state: the present state of one batch.
        steps: the cone, from `KeptGraph.cone`.
        starts: the changed inputs.
        n_rows: number of candidates.
        budget: limits wide temporaries, which are computed in parts.
        products: weight products to use; those in the model's own precision by default. Only rows in
            the model's own precision may be committed.
    """

    def __init__(
        self,
        state: BatchState,
        steps: Sequence[Step],
        starts: Mapping[Place, Start],
        n_rows: int,
        budget: Budget,
        products: Products | None = None,
    ) -> None:
        self.state = state
        self._part_bytes = budget.work if products is None else min(budget.work, budget.cached)
        self._products = products or state.own
        self.n_rows = n_rows
        self._starts = starts
        self._changes: list[Change] = []
        self._dirty: list[tuple[int, int, tuple[int, ...], Positions]] = []
        self._final: Tensor | None = None
        for step in steps:
            self._run(step)

    @property
    def output(self) -> Tensor:
        """Final residual streams at the output's positions, ``[candidate, batch, pos, d_model]``."""
        assert self._final is not None  # every cone ends at the output
        return self._final

    def commit(self, row: int) -> None:
        """Make ``row`` the present state; only for rows in the model's own precision."""
        state, only = self.state, slice(row, row + 1)
        changes = [replace(one, factor=_rows(one.factor, only, axis=1)) for one in self._changes]
        for at, slot, heads, positions in self._dirty:
            terms = self._terms(at, slot, heads, positions, only, changes)
            state.update(
                at, slot, heads, positions, ((term.member, term.value[0], term.at) for term in terms)
            )
        for change in changes:
            step = change.step
            state.differences.add(step.stage, step.heads, step.positions, change.factor[:, 0])

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
            new = self._new_projections(step, which, slot)
            wanted = held[made_here] if stage.slots == 3 else everywhere
            everything = len(slot.members) == len(step.heads)
            now: dict[str, Tensor] = {}
            if not (everything and all(slot.positions is held[letter] for letter in made_here)):
                now = state.projections(step.stage, which, step.heads, wanted)
            for letter in made_here:
                y = new.get(letter)
                if now:
                    present = held[letter].cut(now[letter], wanted)
                    y = _merged(present, y, slot, held[letter], self.n_rows)
                assert y is not None
                made[letter] = math.rotate(y, letter, held[letter].index)
        heads, rounded = list(step.heads), self._products.rounding(stage.layer, step.heads)
        z = math.mix(made["q"], made["k"], made["v"], heads, step.positions.index, rounded)
        present = some_heads(state.now.z[stage.layer], step.heads)
        present = step.positions.cut(present, everywhere).to(z.dtype)
        self._changes.append(Change(step, stage.layer, z - present[:, None]))

    def _new_projections(self, step: Step, which: int, slot: Slot) -> dict[str, Tensor]:
        """Project the dirty inputs, ``[member, candidate, batch, pos, d_head]`` by letter.

        Inputs are wide, so a few heads and rows are processed at a time.
        """
        if not slot.members:
            return {}
        state, stage = self.state, self.state.graph.stages[step.stage]
        heads = tuple(step.heads[m] for m in slot.members)
        self._dirty.append((step.stage, which, heads, slot.positions))
        made: dict[str, Tensor] = {}
        for members, rows in self._parts(len(heads), self._token_bytes(slot.positions)):
            at = (step.stage, which, heads[members], slot.positions)
            x = self.inputs(*at, rows)
            now = None
            if self._products is not state.own:
                now = torch.stack(state.inputs(*at)), state.projections(*at)
            new = state.projected(stage, which, heads[members], x, self._products, now)
            if len(x) == len(heads) and x.shape[1] == self.n_rows:
                return new
            for letter, y in new.items():
                if letter not in made:
                    made[letter] = y.new_empty((len(heads), self.n_rows, *y.shape[2:]))
                made[letter][members, rows] = y
        return made

    def _parts(self, n_units: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
        """Yield parts (units, rows) that fit in the budget; a row of one unit takes ``row_bytes``."""
        at_once = max(1, self._part_bytes // row_bytes)
        units, rows = max(1, at_once // self.n_rows), min(at_once, self.n_rows)
        for row in range(0, self.n_rows, rows):
            for unit in range(0, n_units, units):
                yield slice(unit, unit + units), slice(row, min(row + rows, self.n_rows))

    def _token_bytes(self, positions: Positions, width: int | None = None) -> int:
        """Return the bytes of one row of a tensor of width ``width``, by default d_model."""
        cfg = self.state.model.cfg
        tokens = len(self.state.now.embedding) * len(positions)
        return tokens * (width or cfg.d_model) * cfg.dtype.itemsize

    def _run_mlp(self, step: Step, stage: Stage) -> None:
        state, positions = self.state, step.slots[0].positions
        present = positions.cut(state.now.mlp[stage.layer], state.graph.sets.all)
        y_now, tokens = present.to(state.model.cfg.dtype), state.changing_tokens(positions)
        shape = (self.n_rows, *y_now.shape)
        mlp = self._mlp(step, stage, y_now.flatten(0, 1), tokens)
        self._dirty.append((step.stage, 0, (0,), positions))
        hidden = self._token_bytes(positions, state.model.cfg.d_mlp)
        change: Tensor | None = None
        for _, rows in self._parts(1, hidden):  # the hidden layer is wide
            x = self.inputs(step.stage, 0, (0,), positions, rows)[0].flatten(1, 2)
            part = mlp(x if tokens is None else x[:, tokens], rows)
            if tokens is None and len(part) == self.n_rows:
                change = part.view(shape)
                break
            change = y_now.new_zeros(shape) if change is None else change
            out = change[rows].flatten(1, 2)
            if tokens is None:
                out.copy_(part)
            else:
                out.index_copy_(1, tokens, part)
        assert change is not None
        self._changes.append(Change(step, None, change[None]))

    def _mlp(
        self, step: Step, stage: Stage, y_now: Tensor, tokens: Tensor | None
    ) -> Callable[[Tensor, slice], Tensor]:
        """Return the change of an MLP's output as a function of its inputs at the changing tokens, both
        ``[candidate, n, d_model]``, and of their rows; ``y_now [batch * pos, d_model]``."""
        state, positions = self.state, step.slots[0].positions
        y_now = y_now if tokens is None else y_now[tokens]

        def x_now() -> Tensor:
            x = state.inputs(step.stage, 0, (0,), positions)[0].flatten(0, 1)
            return x if tokens is None else x[tokens]

        heads, feeds = self._narrow_feeds(step, stage)
        if not heads:
            mlp = state.mlp(step.stage, positions, x_now, y_now, self._products)
            return lambda x, _: mlp(x)
        x_present = x_now()

        def narrow(x: Tensor, rows: slice) -> Tensor:
            dz = torch.cat([self._side_by_side(*feed, positions, rows) for feed in feeds], dim=-1)
            dz = dz if tokens is None else dz[:, tokens]
            return state.own.narrow_mlp(stage.layer, x, x_present, heads, dz).sub_(y_now)

        return narrow

    def _narrow_feeds(
        self, step: Step, stage: Stage
    ) -> tuple[list[tuple[int, int]], list[tuple[Change, Feed]]]:
        """Return the (layer, head) pairs that change an MLP's input, and their feeds; nothing if
        something else changes it too, or if `NarrowMlp` would not be faster."""
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
        whole = all(change.layer is not None and feed.weights is None for change, feed in feeds)
        started = (step.stage, 0, 0) in self._starts
        own = self._products is self.state.own
        width = self.state.model.cfg.d_head * len(heads)
        if (
            feeds
            and whole
            and own
            and not started
            and self.state.own.narrow_mlp.pays(stage.layer, width)
        ):
            return heads, feeds
        return [], []

    def _side_by_side(self, change: Change, feed: Feed, positions: Positions, rows: slice) -> Tensor:
        """Concatenate changes of z of the chosen heads, ``[candidate, batch * pos, head * d_head]``."""
        shared, known = positions.shared(change.step.positions)
        factor = _taken(_chosen(change.factor, feed, rows), shared)
        if known is not None:
            shape = (*factor.shape[:-2], len(positions), factor.shape[-1])
            factor = factor.new_zeros(shape).index_copy_(-2, known, factor)
        return factor.permute(1, 2, 3, 0, 4).flatten(3).flatten(1, 2)

    def _run_output(self, step: Step) -> None:
        positions = self.state.graph.outputs
        self._dirty.append((step.stage, 0, (0,), positions))
        self._final = self.inputs(step.stage, 0, (0,), positions, slice(0, self.n_rows))[0]

    # Inputs --------------------------------------------------------------------------------------

    def inputs(
        self,
        at: int,
        slot: int,
        heads: tuple[int, ...],
        positions: Positions,
        rows: slice,
    ) -> Tensor:
        """Compute the inputs of dirty destinations on some rows, ``[head, candidate, batch, pos,
        d_model]``: the present inputs plus the changes that feed them."""
        now = self.state.inputs(at, slot, heads, positions)
        x = now[0].new_empty((len(heads), rows.stop - rows.start, *now[0].shape))
        sums = [Sum(x[i], present) for i, present in enumerate(now)]
        for term in self._terms(at, slot, heads, positions, rows, self._changes):
            sums[term.member].add(term)
        for total in sums:
            total.finish()
        return x

    def _terms(
        self,
        at: int,
        slot: int,
        heads: tuple[int, ...],
        positions: Positions,
        rows: slice,
        changes: Sequence[Change],
    ) -> Iterator[Term]:
        """Yield what changes the inputs of some destinations on some rows."""
        for member, head in enumerate(heads):
            start = self._starts.get((at, slot, head))
            if start is not None:
                shared, known = positions.shared(start.positions)
                for some, delta in start.on(rows):
                    yield Term(member, _taken(delta, shared), known, some)
        everything = slice(0, rows.stop - rows.start)
        for change in changes:
            shared, known = positions.shared(change.step.positions)
            for feed in self.state.graph.feeds(at, slot, heads, change.step, positions):
                value = self._contribution(change, feed, shared, known, rows)
                for member in feed.members:
                    yield Term(member, value, known, everything)

    def _contribution(
        self, change: Change, feed: Feed, shared: Tensor | None, known: Tensor | None, rows: slice
    ) -> Tensor:
        """Compute what the chosen sources add, ``[candidate, batch, pos, d_model]``, at the positions of
        the change that are wanted: ``shared`` indexes its own positions, ``known`` the wanted ones."""
        factor = _taken(_chosen(change.factor, feed, rows), shared)
        if feed.weights is not None:
            weights = feed.weights if known is None else feed.weights[:, known]
            factor = factor * weights.to(factor.dtype)[:, None, None, :, None]
        if change.layer is None:
            return factor[0]
        heads = [change.step.heads[i] for i in feed.chosen]
        return self._products.output(change.layer, heads, factor)


def _rows(x: Tensor, rows: slice, axis: int = 0) -> Tensor:
    """Select some rows of the candidate axis; a single row stands for all if none differs."""
    count = rows.stop - rows.start
    return x if x.shape[axis] in (1, count) else x.narrow(axis, rows.start, count)


def _chosen(factor: Tensor, feed: Feed, rows: slice) -> Tensor:
    """Select the chosen heads on some rows of ``factor [head, candidate, batch, pos, d]``."""
    factor = _rows(factor, rows, axis=1)
    return factor if len(feed.chosen) == len(factor) else factor[list(feed.chosen)]


def _taken(x: Tensor, at: Tensor | None) -> Tensor:
    """Select some positions of ``x [..., pos, d]``; ``None`` selects all."""
    return x if at is None else x.index_select(-2, at)


def _merged(now: Tensor, new: Tensor | None, slot: Slot, held: Positions, n_rows: int) -> Tensor:
    """Insert the dirty projections into the present ones ``[head, batch, pos, d_head]``; returns
    ``[head, candidate or 1, batch, pos, d_head]``."""
    if new is None:
        return now[:, None]
    if len(slot.members) == len(now) and slot.positions is held:
        return new
    merged = now[:, None].expand(-1, n_rows, -1, -1, -1).clone()
    at = slot.positions.within(held)
    first = 0
    for members in consecutive(slot.members):
        count = members.stop - members.start
        merged[members].index_copy_(3, at, new[first : first + count])
        first += count
    return merged
