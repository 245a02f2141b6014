"""A plain forward from the middle of the model to its output, for rows whose whole streams differ.

1. All heads of a layer read one normalised stream, so their queries, keys and values take one product
   each. Keys and values before the first change are those of the full model.
2. Attention, output projection and MLP as in any forward.
3. Only what is read later is computed: in the last layer that is the positions of the output.

Streams are ``[row, prompt, pos, d_model]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.full_model import GroupView
from pahq_plugin.engines.incremental.positions import Positions
from pahq_plugin.models.blocks import normalise


class Onward:
    """Runs rows of one group of prompts to the output.

    Args:
        view: the full model on these prompts.
        work_bytes: bytes for the hidden layer of an MLP, which is computed in parts.
    """

    def __init__(self, view: GroupView, work_bytes: int) -> None:
        self._view = view
        self._work_bytes = work_bytes

    def __call__(self, x: Tensor, at: int) -> Tensor:
        """Compute final residual streams.

        Args:
            x: streams before stage ``at``, at the positions of `GroupView.stream`; overwritten.
            at: index of the stage.

        Returns:
            ``[row, prompt, pos, d_model]`` at all positions of the output.
        """
        stages, where = self._view.full.graph.stages, self._view.stream(at)
        pending: Tensor | None = None  # outputs that nothing has read yet
        first_pending = 0
        for a in range(at, len(stages)):
            stage = stages[a]
            if pending is not None and stage.n_sources > first_pending:
                before, where = where, self._view.stream(a)
                x, pending = where.cut(x, before).add_(pending), None
            if stage.kind == "output":
                break
            if stage.kind == "head":
                out = self._heads(a, x, where)
            else:
                out = self.mlp(a, self._view.written(a).cut(x, where))
            if pending is None:
                pending, first_pending = out, stage.first_source
            else:
                pending += out
        return self.whole_output(x, where)

    def _heads(self, at: int, x: Tensor, where: Positions) -> Tensor:
        """Compute the output of attention, ``[row, prompt, pos, d_model]``, where it is read."""
        view, layer = self._view, self._view.full.graph.stages[at].layer
        math, attn = view.attention[layer], view.full.state.own.blocks[layer].attn
        normal, queries = normalise(math.norm, x), view.written(at)
        q = view.full.project(layer, "q", queries.cut(normal, where))
        k, v = (self._completed(at, letter, normal, where) for letter in "kv")
        everywhere = view.full.graph.sets.all.index
        q, k = math.rotate(q, "q", queries.index), math.rotate(k, "k", everywhere)
        z = math.mix(q, k, v, list(range(len(q))), queries.index)  # [head, row, prompt, pos, d_head]
        flat = z.permute(1, 2, 3, 0, 4).reshape(-1, attn.W_O[..., 0].numel())
        out = torch.addmm(attn.b_O, flat, attn.W_O.flatten(0, 1))
        return out.view(*z.shape[1:4], -1)

    def _completed(self, at: int, letter: str, normal: Tensor, where: Positions) -> Tensor:
        """Compute keys or values, and add those of the full model at the other positions, ``[head, row,
        prompt, pos, d_head]``."""
        full = self._view.full
        new = full.project(full.graph.stages[at].layer, letter, normal)
        length, begin = full.graph.shape.length, int(where.array[0])
        end = begin + len(where)  # causal attention reads from the first change on, other everywhere
        if end - begin == length:
            return new
        now = self._view.some(full.projections(at, letter))[:, None].expand(-1, len(normal), -1, -1, -1)
        parts = (now[..., :begin, :], new, now[..., end:, :])
        return torch.cat([part for part in parts if part.shape[3]], dim=3)

    def mlp(self, at: int, x: Tensor) -> Tensor:
        """Compute the outputs of the MLP of stage ``at``, norm included, in the shape of its input
        streams ``x``."""
        full = self._view.full
        block = full.state.own.blocks[full.graph.stages[at].layer]
        row_bytes = x[0, ..., 0].numel() * full.state.model.cfg.d_mlp * x.itemsize
        parts = x.flatten(1, 2).split(max(1, self._work_bytes // row_bytes))
        made = [block.mlp(normalise(block.ln2, part)) for part in parts]
        return (made[0] if len(made) == 1 else torch.cat(made)).view(x.shape)

    def whole_output(self, x: Tensor, where: Positions) -> Tensor:
        """Add the full model's final streams at output positions that do not change."""
        full = self._view.full
        outputs = full.graph.outputs
        if len(where) == len(outputs):
            return x
        final = self._view.some(full.stream(len(full.graph.stages) - 1), outputs)
        final = final.expand(len(x), -1, -1, -1).clone()
        return final.index_copy_(2, where.within(outputs), x)
