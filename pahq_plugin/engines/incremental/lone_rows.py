"""Rows that each patch a single edge into a stage of the full model: up to the stream after that stage.

1. Every destination of a stage reads the same stream, so an edge changes it by (ablated - now) of its
   source, whatever its destination. The changed stream is normalised, and multiplied by the weights of
   all heads, once per source.
2. A row into a head takes the query, key or value of that head from there, and everything else of the
   head from the full model. Its change of z, times the head's W_O, is added to the next stream.
3. A row into an MLP takes its changed output, a row into the output the changed stream itself.

Everything after that is the same for all rows, see `onward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.full_model import FullModel, GroupView
from pahq_plugin.engines.incremental.onward import Onward
from pahq_plugin.engines.incremental.positions import Positions
from pahq_plugin.engines.incremental.prompt_groups import PromptGroup
from pahq_plugin.engines.incremental.state import letters
from pahq_plugin.models.blocks import normalise


@dataclass(frozen=True)
class LoneRow:
    """The place and source of the edge that a row patches.

    Attributes:
        slot: which input of a head; 0 for an MLP or the output.
        head: which head; 0 for an MLP or the output.
        source: index of the source.
    """

    slot: int
    head: int
    source: int


class LonePass:
    """One pass over rows into one stage, on the prompts of one batch.

    Args:
        full: the full model on the batch.
        groups: its prompts by the position at which they begin to change.
        at: the stage.
        position: the position at which the edges act; ``None`` for all.
        rows: the rows; those into the same slot stand together.
        work_bytes: approximate limit on the bytes of temporaries.
    """

    def __init__(
        self,
        full: FullModel,
        groups: Sequence[PromptGroup],
        at: int,
        position: int | None,
        rows: Sequence[LoneRow],
        work_bytes: int,
    ) -> None:
        self._full, self._groups = full, groups
        self._at, self._position, self._rows = at, position, rows
        self._work_bytes = work_bytes
        self._sources = sorted({row.source for row in rows})
        where = {source: i for i, source in enumerate(self._sources)}
        device = full.graph.outputs.index.device
        self._source = torch.tensor([where[row.source] for row in rows], device=device)
        self._head = torch.tensor([row.head for row in rows], device=device)

    def final(self) -> Tensor:
        """Compute the final streams at the output's positions, ``[row, batch, pos, d_model]``."""
        full, graph = self._full, self._full.graph
        last = graph.outputs.cut(full.stream(len(graph.stages) - 1), graph.sets.all)
        final = last.expand(len(self._rows), -1, -1, -1).clone()
        if not self._groups:
            return final
        acting = self._acting(min(group.first for group in self._groups))
        if len(acting) == 0:
            return final
        differences = full.differences(self._sources, acting)
        for group in self._groups:
            own = self._acting(group.first)
            if len(own) == 0:
                continue
            view = GroupView(full, group)
            some = own.cut(view.some(differences), acting)
            prompts = torch.from_numpy(group.prompts).to(final.device)
            final.index_copy_(1, prompts, self._of_group(view, own, some))
        return final

    def _acting(self, first: int) -> Positions:
        """Return the positions at which these edges change what the stage reads."""
        acts = self._full.layout.reads(self._at)
        acts[:first] = False
        if self._position is not None:
            acts &= np.arange(len(acts)) == self._position
        return self._full.graph.sets.of(acts)

    def _of_group(self, view: GroupView, acting: Positions, differences: Tensor) -> Tensor:
        """Compute the final streams of a group's prompts, ``[row, prompt, pos, d_model]``.

        Args:
            view: the full model on these prompts.
            acting: where the edges act.
            differences: (now - ablated) of the sources there, ``[source, prompt, pos, d_model]``.
        """
        at, layout = self._at, self._full.layout
        onward, kind = Onward(view, self._work_bytes), self._full.graph.stages[at].kind
        changed = view.some(self._full.stream(at), acting) - differences
        if kind == "output":
            return onward.whole_output(changed[self._source], acting)
        if kind == "head":
            after = self._through_heads(view, changed, acting)
        else:
            after = self._through_mlp(view, onward, changed, acting)
        return onward(after, layout.reader(at))

    def _through_mlp(
        self, view: GroupView, onward: Onward, changed: Tensor, acting: Positions
    ) -> Tensor:
        """Compute the streams after an MLP that reads ``changed [source, prompt, pos, d_model]``."""
        layer, written = self._full.graph.stages[self._at].layer, view.written(self._at)
        now = view.some(self._full.state.now.mlp[layer], acting).to(changed.dtype)
        change = onward.mlp(self._at, changed).sub_(now)[self._source]
        after = view.residual(self._full.layout.reader(self._at))
        if acting is written:
            return change.add_(after)
        whole = after.expand(len(change), -1, -1, -1).clone()
        return whole.index_add_(2, acting.within(written), change)

    def _through_heads(self, view: GroupView, changed: Tensor, acting: Positions) -> Tensor:
        """Compute the streams after heads that read ``changed [source, prompt, pos, d_model]``."""
        full, at = self._full, self._at
        layer, queries = full.graph.stages[at].layer, view.written(at)
        math, everywhere = view.attention[layer], full.graph.sets.all
        normal = normalise(math.norm, changed)
        inputs = {}
        for letter, positions in (("q", queries), ("k", everywhere), ("v", everywhere)):
            y = self._inputs(view, letter, normal, acting, positions)
            inputs[letter] = math.rotate(y[:, None], letter, positions.index)
        heads = self._head.tolist()
        z = math.mix(inputs["q"], inputs["k"], inputs["v"], heads, queries.index)[:, 0]
        now = view.some(full.state.now.z[layer], queries).to(z.dtype)
        change = z.sub_(now[self._head]).flatten(1, 2)  # [row, prompt * pos, d_head]
        after = view.residual(full.layout.reader(at))
        W_O = full.state.own.blocks[layer].attn.W_O[self._head]
        flat = torch.baddbmm(after.flatten(0, 1).expand(len(change), -1, -1), change, W_O)
        return flat.unflatten(1, after.shape[:2])

    def _inputs(
        self, view: GroupView, letter: str, normal: Tensor, acting: Positions, wanted: Positions
    ) -> Tensor:
        """Compute each row's query, key or value, before rotation, ``[row, prompt, pos, d_head]``.

        Args:
            view: the full model on these prompts.
            letter: which of the three.
            normal: normalised changed streams, ``[source, prompt, pos, d_model]``.
            acting: where the edges act.
            wanted: positions of the result.
        """
        full = self._full
        stage = full.graph.stages[self._at]
        whole = view.some(full.projections(self._at, letter), wanted)[self._head]
        own = [i for i, row in enumerate(self._rows) if letter in letters(stage, row.slot)]
        if not own:
            return whole
        rows = slice(own[0], own[-1] + 1)
        y = full.project(stage.layer, letter, normal)[self._head[rows], self._source[rows]]
        shared, known = wanted.shared(acting)
        y = y if shared is None else y.index_select(2, shared)
        if known is None:
            whole[rows] = y
        else:
            whole[rows].index_copy_(2, known, y)
        return whole
