"""Where candidates act, the cone they can reach, and how many of its rows fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pahq_plugin.engines.incremental.budget import row_bytes, row_products
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place, Shape, Step
from pahq_plugin.engines.incremental.positions import Bools, Ints
from pahq_plugin.host import AblationType, Edge, PatchableModel, PromptPairBatch
from pahq_plugin.models.blocks import embed, output_positions

MOST_PLANS = 32
"""Number of memoised cones."""


class Plans:
    """Cones of groups of candidates.

    Args:
        graph: the kept edges.
        model: the model of that graph.
        prompts: number of prompts of a batch.
    """

    def __init__(self, graph: KeptGraph, model: PatchableModel, prompts: int) -> None:
        self._graph = graph
        self._cfg = model.cfg
        self._prompts = prompts
        self._plans: dict[tuple[tuple[Place, bytes], ...], tuple[tuple[int, ...], list[Step]]] = {}

    def cone(self, edges: Sequence[Edge]) -> list[Step]:
        """Return the cone of the destinations of ``edges``; memoised until an edge behind them is
        removed."""
        places = self.touched_places(edges)
        behind = min(stage for stage, _, _ in places) + 1
        version = tuple(self._graph.removals[behind:])
        key = tuple((place, at.tobytes()) for place, at in places.items())
        if key not in self._plans or self._plans[key][0] != version:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = (version, self._graph.cone(places))
        return self._plans[key][1]

    def fitting_rows(self, steps: Sequence[Step], budget: int) -> int:
        """Return how many rows of a pass over the cone ``steps`` fit in ``budget`` bytes, at least 1."""
        return max(1, budget // self.row_bytes(steps))

    def row_bytes(self, steps: Sequence[Step]) -> int:
        """Return the bytes that one row of a pass over the cone ``steps`` holds."""
        return row_bytes(steps, self._graph, self._cfg, self._prompts)

    def row_products(self, steps: Sequence[Step]) -> int:
        """Return the multiplications of one row of a pass over the cone ``steps``."""
        return row_products(steps, self._graph, self._cfg, self._prompts)

    def clear(self) -> None:
        """Forget all cones."""
        self._plans.clear()

    def touched(self, edges: Iterable[Edge]) -> Bools:
        """Return the positions at which ``edges`` act, ``[pos]`` of bool."""
        length = self._graph.shape.length
        if not self._graph.positional:
            return np.ones(length, dtype=bool)
        touched = np.zeros(length, dtype=bool)
        touched[[edge.seq_idx or 0 for edge in edges]] = True
        return touched

    def touched_places(self, edges: Sequence[Edge]) -> dict[Place, Bools]:
        """Return the destinations of ``edges``, and the positions at which they act on each."""
        groups = self.by_place(edges).items()
        return {place: self.touched(edges[i] for i in members) for place, members in groups}

    def by_place(self, edges: Sequence[Edge]) -> dict[Place, list[int]]:
        """Return the indices of the edges into each destination."""
        groups: dict[Place, list[int]] = {}
        for i, edge in enumerate(edges):
            groups.setdefault(self._graph.place(edge), []).append(i)
        return groups


def shape_of(model: PatchableModel, prompts: Sequence[PromptPairBatch], ablation: AblationType) -> Shape:
    """Describe where changes can be seen. With causal attention and resample ablation, nothing differs
    before the first token at which a clean and a corrupt prompt differ."""
    length = prompts[0].clean.shape[1]
    outputs = np.zeros(length, dtype=bool)
    outputs[output_positions(model, length)[0]] = True
    first = min(int(first_changes(model, batch, ablation).min()) for batch in prompts)
    return Shape(length, outputs, model.cfg.attention_dir == "causal", first)


def first_changes(model: PatchableModel, batch: PromptPairBatch, ablation: AblationType) -> Ints:
    """Return for each prompt the position before which nothing can ever change, ``[prompt]``."""
    prompts, length = batch.clean.shape
    if model.cfg.attention_dir != "causal" or ablation is not AblationType.RESAMPLE:
        return np.zeros(prompts, dtype=np.int64)
    differs = batch.clean != batch.corrupt
    masks = [embed(model, tokens)[1] for tokens in (batch.clean, batch.corrupt)]
    if masks[0] is not None and masks[1] is not None:  # a token may be padding in only one of them
        differs = differs | (masks[0] != masks[1])[:, -length:]
    differs = differs.cpu().numpy()
    return np.where(differs.any(axis=1), differs.argmax(axis=1), length)
