"""The full model, no edge removed, on the prompts of one batch.

With every edge kept, all destinations of a stage read the same residual stream. So the queries, keys or
values of all heads of a layer are one product, ``[token, d_model] @ [d_model, head * d_head]``, of one
normalised stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.kept_graph import KeptGraph
from pahq_plugin.engines.incremental.memo import Memo, Versioned
from pahq_plugin.engines.incremental.positions import Bools, Positions
from pahq_plugin.engines.incremental.prompt_groups import PromptGroup
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.models.blocks import AttentionMath, normalise


class Layout:
    """Where the stages of the full model read and write.

    Args:
        graph: the graph with every edge kept.
    """

    def __init__(self, graph: KeptGraph) -> None:
        self.graph = graph
        needs = [self.reads(at) for at in range(len(graph.stages))]
        reversed_stream = np.logical_or.accumulate(needs[::-1], axis=0)
        self._streams: list[Bools] = list(reversed_stream[::-1])

    def reads(self, at: int) -> Bools:
        """Return the positions at which any destination of stage ``at`` reads, ``[pos]`` of bool."""
        return np.any(self.graph.needs(at), axis=(0, 1))

    def stream(self, at: int, first: int) -> Positions:
        """Return the positions from ``first`` on at which stage ``at`` or a later one reads."""
        stream = self._streams[at].copy()
        stream[:first] = False
        return self.graph.sets.of(stream)

    def reader(self, at: int) -> int:
        """Return the first stage that reads the output of stage ``at``; all later ones read it, too."""
        stages, source = self.graph.stages, self.graph.stages[at].first_source
        return next(a for a in range(at + 1, len(stages)) if stages[a].n_sources > source)

    def written(self, at: int, first: int) -> Positions:
        """Return the positions from ``first`` on at which the output of stage ``at`` is read."""
        return self.stream(self.reader(at), first)


class FullModel:
    """Residual streams and projections of one batch in the full model.

    Args:
        state: the present state of the batch, from which no edge is removed.
        layout: where the stages of its graph read and write.
        weights: memo of the projections' weights, shared by all batches.
        memo_bytes: budget for memoised projections.
    """

    def __init__(
        self, state: BatchState, layout: Layout, weights: Memo[Versioned], memo_bytes: int
    ) -> None:
        self.state = state
        self.layout = layout
        self.graph = layout.graph
        self._weights = weights
        self._projected: Memo[Versioned] = Memo(memo_bytes)

    def next_round(self) -> None:
        """Tell the memo that a pass begins."""
        self._projected.next_round()

    def stream(self, at: int) -> Tensor:
        """Return the residual stream that stage ``at`` reads, ``[batch, pos, d_model]``."""
        return self.state.current_base(at)

    def differences(self, sources: Sequence[int], positions: Positions) -> Tensor:
        """Compute (now - ablated) outputs of sources, ``[source, batch, pos, d_model]``."""
        wanted = np.zeros(self.graph.n_sources, dtype=bool)
        wanted[list(sources)] = True
        out: Tensor | None = None
        for columns, block in self.state.differences.blocks(len(wanted), positions, wanted):
            own = [i for i, source in enumerate(sources) if columns.start <= source < columns.stop]
            if out is None:
                out = block.new_empty((len(sources), *block.shape[1:]))
            out[own] = block[[sources[i] - columns.start for i in own]]
        assert out is not None  # every source is in a block
        return out

    def projections(self, at: int, letter: str) -> Tensor:
        """Return the queries, keys or values of all heads of stage ``at``, with bias, before rotation,
        ``[head, batch, pos, d_head]``."""
        found = self._projected.get((at, letter))
        if found is None:
            layer = self.graph.stages[at].layer
            normal = normalise(self.state.attention[layer].norm, self.stream(at))
            y = self.project(layer, letter, normal[None])[:, 0].contiguous()
            found = Versioned({"y": y}, 0)
            self._projected.put((at, letter), found)
        return found.entries["y"]

    def project(self, layer: int, letter: str, normal: Tensor) -> Tensor:
        """Compute queries, keys or values of all heads, with bias, before rotation.

        Args:
            layer: the block.
            letter: ``"q"``, ``"k"`` or ``"v"``.
            normal: normalised streams, ``[row, prompt, pos, d_model]``.

        Returns:
            ``[head, row, prompt, pos, d_head]``, a view of a tensor with heads last but one.
        """
        bias = self.state.attention[layer].bias_of(letter)
        flat = torch.addmm(bias.flatten(), normal.flatten(0, 2), self._weight(layer, letter))
        return flat.view(*normal.shape[:3], *bias.shape).permute(3, 0, 1, 2, 4)

    def _weight(self, layer: int, letter: str) -> Tensor:
        """Return the weight of q, k or v of all heads side by side, ``[d_model, head * d_head]``."""
        found = self._weights.get((layer, letter))
        if found is None:
            weight = getattr(self.state.own.blocks[layer].attn, f"W_{letter.upper()}")
            found = Versioned({"W": weight.transpose(0, 1).flatten(1)}, 0)
            self._weights.put((layer, letter), found)
        return found.entries["W"]


class GroupView:
    """The full model on the prompts of one group, from the group's first change on.

    Args:
        full: the full model on the whole batch.
        group: the prompts.
    """

    def __init__(self, full: FullModel, group: PromptGroup) -> None:
        self.full, self.group = full, group
        self._all = len(group.prompts) == full.state.now.embedding.shape[0]
        index = torch.from_numpy(group.prompts)
        self._index = index.to(full.graph.outputs.index.device)

    @cached_property
    def attention(self) -> list[AttentionMath]:
        """The arithmetic of attention on these prompts, by layer."""
        every = self.full.state.attention
        return every if self._all else [math.of_prompts(self._index) for math in every]

    def some(self, x: Tensor, positions: Positions | None = None) -> Tensor:
        """Select these prompts, and by default all positions, of ``x [..., batch, pos, d]``."""
        x = x if self._all else x.index_select(-3, self._index)
        return x if positions is None else positions.cut(x, self.full.graph.sets.all)

    def stream(self, at: int) -> Positions:
        """Return where stage ``at`` or a later one reads what has changed."""
        return self.full.layout.stream(at, self.group.first)

    def written(self, at: int) -> Positions:
        """Return where the changed output of stage ``at`` is read."""
        return self.full.layout.written(at, self.group.first)

    def residual(self, at: int) -> Tensor:
        """Return the residual stream that stage ``at`` reads, ``[prompt, pos, d_model]``, at
        `stream`."""
        return self.some(self.full.stream(at), self.stream(at))
