"""(Now - ablated) outputs of sources: what inputs lose when edges are removed.

The sources before a stage do not change while the candidates into that stage are decided, so all passes
need the same differences. They are d_model wide and computed in blocks of consecutive sources, which are
memoised as far as they fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.kept_graph import KeptGraph
from pahq_plugin.engines.incremental.memo import Memo, Sized, Versioned
from pahq_plugin.engines.incremental.positions import Bools, Positions
from pahq_plugin.engines.incremental.products import OwnProducts, consecutive, some_heads
from pahq_plugin.engines.incremental.source_outputs import Sources

BLOCK_BYTES = 2**21
"""A block ends before it exceeds this, at all positions; it is one stage of sources at least."""


@dataclass(frozen=True)
class _Block:
    """Sources ``first`` to ``end - 1``, those of some consecutive ``stages``."""

    stages: tuple[int, ...]
    first: int
    end: int


class Differences:
    """Sources of one batch, now and ablated.

    Args:
        graph: the kept edges.
        own: products in the model's own precision.
        now: source outputs of the present state; changed by `add`.
        ablated: source outputs that removed edges carry.
        dtype: of the model; sources may be stored in another.
        memo: keeps blocks.
    """

    def __init__(
        self,
        graph: KeptGraph,
        own: OwnProducts,
        now: Sources,
        ablated: Sources,
        dtype: torch.dtype,
        memo: Memo[Sized],
    ) -> None:
        self.now, self.ablated = now, ablated
        self._graph, self._own, self._dtype, self._memo = graph, own, dtype, memo
        self._versions = np.zeros(graph.n_sources, dtype=np.int64)
        self._changing: dict[int, tuple[int, Bools]] = {}
        self._blocks = self._partition()

    def restart(self, now: Sources) -> None:
        """Make ``now`` the present source outputs."""
        self.now = now
        self._versions += 1

    def add(self, stage: int, heads: Sequence[int], positions: Positions, change: Tensor) -> None:
        """Add to the present outputs of sources of a stage.

        Args:
            stage: the stage.
            heads: which heads; ``[0]`` for an MLP.
            positions: positions of the change.
            change: of z, ``[head, batch, pos, d_head]``, or of an MLP's output, ``[1, batch, pos,
                d_model]``.
        """
        own = self._graph.stages[stage]
        target = self.now.z[own.layer] if own.kind == "head" else self.now.mlp[own.layer][None]
        change, first = change.to(target.dtype), 0
        for some in consecutive(heads):
            end = first + some.stop - some.start
            target[some].index_add_(2, positions.index, change[first:end])
            first = end
        self._versions[own.first_source + np.array(heads)] += 1

    def version(self, n_sources: int) -> int:
        """Return a number that grows whenever one of the first sources changes."""
        return int(self._versions[:n_sources].sum())

    def changing(self, n_sources: int) -> Bools:
        """Return where each of the first sources differs from its ablated output, ``[source, pos]``."""
        stages = self._stages_before(n_sources)
        return np.concatenate([self._changing_of(stage) for stage in stages])

    def blocks(
        self, n_sources: int, positions: Positions, wanted: Bools | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of the first sources and their differences ``[source, batch, pos, d_model]``.

        Args:
            n_sources: number of sources; those before a stage.
            positions: positions of the result.
            wanted: blocks without any of these sources are left out, ``[source]``.
        """
        for block in self._blocks:
            columns = slice(block.first, min(block.end, n_sources))
            if block.first < n_sources and (wanted is None or wanted[columns].any()):
                yield columns, self._of(block, columns, positions)

    def lost(self, gone: Bools, positions: Positions) -> Tensor:
        """Compute what inputs lose when sources are gone: minus the sum of their differences.

        Args:
            gone: whether each of the first sources is gone on each row, ``[row, all pos or 1, source]``.
            positions: positions of the result.

        Returns:
            ``[row, batch, pos, d_model]``.
        """
        total: Tensor | None = None
        gone = gone[:, positions.array] if gone.shape[1] > 1 else gone
        wanted: Bools = np.any(gone, axis=(0, 1))
        for columns, taken in self.blocks(gone.shape[-1], positions, wanted):
            weights = torch.from_numpy(gone[..., columns] * np.float32(-1)).to(taken)
            if weights.shape[1] == 1:
                part = (weights[:, 0] @ taken.flatten(1)).unflatten(1, taken.shape[1:])
            else:
                part = torch.einsum("rps,sbpd->rbpd", weights, taken)
            total = part if total is None else total.add_(part)
        if total is None:
            like = self.now.embedding
            shape = (len(gone), len(like), len(positions), like.shape[-1])
            return like.new_zeros(shape, dtype=self._dtype)
        return total

    def summed(self, sources: Sequence[int], positions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum the differences of sources, with one product for all heads of a layer.

        Args:
            sources: source indices, ascending.
            positions: ``[pos]``.
            weights: 0 or 1 for each source at each position, ``[source, pos]``; ``None`` for all 1.

        Returns:
            ``[batch, pos, d_model]``.
        """
        like = self.now.embedding
        total = like.new_zeros((len(like), len(positions), like.shape[-1]), dtype=self._dtype)
        for stage, members in self._by_stage(sources).items():
            heads = [self._graph.source_stage[sources[i]][1] for i in members]
            factors = self.factors(stage, heads, positions)
            if weights is not None:
                factors *= weights[members][:, None, :, None]
            if self._is_heads(stage):
                weight = self._own.weight(self._graph.stages[stage].layer, "W_O", heads)
                total += factors.permute(1, 2, 0, 3).flatten(2) @ weight.flatten(0, 1)
            else:
                total += factors[0]
        return total

    def factors(self, stage: int, heads: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """Compute (now - ablated) of the stored tensors of some sources of a stage, ``[source, batch,
        pos, d]``: z of heads, or the single output of an MLP or, for stage -1, the embedding; at all
        positions by default."""
        if stage < 0:
            pair = [sources.embedding[None] for sources in (self.now, self.ablated)]
        else:
            layer = self._graph.stages[stage].layer
            if self._is_heads(stage):
                pair = [some_heads(sources.z[layer], heads) for sources in (self.now, self.ablated)]
            else:
                pair = [sources.mlp[layer][None] for sources in (self.now, self.ablated)]
        if positions is not None and len(positions) < pair[0].shape[2]:
            pair = [x.index_select(2, positions) for x in pair]
        now, ablated = (x.to(self._dtype) for x in pair)
        return now - ablated

    # Blocks --------------------------------------------------------------------------------------

    def _partition(self) -> list[_Block]:
        """Divide the sources into blocks."""
        one, blocks = self.now.embedding.numel() * self._dtype.itemsize, []
        stages: list[int] = []
        first = end = 0
        for stage in self._stages_before(self._graph.n_sources):
            count = len(self._graph.sources_of(stage))
            if stages and (end + count - first) * one > BLOCK_BYTES:
                blocks.append(_Block(tuple(stages), first, end))
                stages, first = [], end
            stages.append(stage)
            end += count
        return [*blocks, _Block(tuple(stages), first, end)]

    def _of(self, block: _Block, columns: slice, positions: Positions) -> Tensor:
        """Return the differences of the sources ``columns`` of a block."""
        key = ("differences", columns.start, columns.stop, id(positions))
        version = int(self._versions[columns].sum())
        found = self._memo.get(key)
        if isinstance(found, Versioned) and found.version == version:
            return found.entries["x"]
        stages = (s for s in block.stages if self._graph.sources_of(s)[0] < columns.stop)
        parts = [self._projected(stage, positions) for stage in stages]
        entry = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._memo.put(key, Versioned({"x": entry}, version))
        return entry

    def _projected(self, stage: int, positions: Positions) -> Tensor:
        """Compute the differences of all sources of a stage, ``[source, batch, pos, d_model]``."""
        heads = range(len(self._graph.sources_of(stage)))
        factors = self.factors(stage, heads, positions.index)
        if not self._is_heads(stage):
            return factors
        layer = self._graph.stages[stage].layer
        flat = self._own.heads(layer, "W_O", heads, factors.flatten(1, 2))
        return flat.unflatten(1, factors.shape[1:3])

    def _changing_of(self, stage: int) -> Bools:
        """Return where the sources of a stage differ from their ablated outputs, ``[source, pos]``."""
        sources = self._graph.sources_of(stage)
        version = int(self._versions[sources].sum())
        found = self._changing.get(stage)
        if found is None or found[0] != version:
            factors = self.factors(stage, range(len(sources)))
            found = self._changing[stage] = version, factors.any(dim=3).any(dim=1).cpu().numpy()
        return found[1]

    def _stages_before(self, n_sources: int) -> list[int]:
        """Return the stages of the first sources, in their order; stage -1 is the embedding."""
        firsts = {-1: 0} | {
            at: stage.first_source
            for at, stage in enumerate(self._graph.stages)
            if stage.kind != "output"
        }
        before = (stage for stage, first in firsts.items() if first < n_sources)
        return sorted(before, key=firsts.__getitem__)

    def _by_stage(self, sources: Sequence[int]) -> dict[int, list[int]]:
        """Return the indices of the sources of each stage."""
        groups: dict[int, list[int]] = {}
        for i, source in enumerate(sources):
            groups.setdefault(self._graph.source_stage[source][0], []).append(i)
        return groups

    def _is_heads(self, stage: int) -> bool:
        """Return whether the sources of a stage are heads; stage -1 is the embedding."""
        return stage >= 0 and self._graph.stages[stage].kind == "head"
