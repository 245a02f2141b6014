"""The kept edges, and the cone of units that a change can reach through them.

The model is a sequence of *stages*: the attention heads of a block, its MLP, ..., the output. A stage
reads sources with a smaller index and, except for the output, is a source itself. Positions are tracked
throughout, since most nodes of a sparse circuit are read at one position only.

1. *Needs*, backwards from the output: a destination is needed where its unit's output is read through
   kept edges; a key or value at every position that a needed query may attend to.
2. *Cone*, forwards from the changed destinations: a destination is dirty where it is needed and a dirty
   source feeds it through a kept edge. A head is dirty at its dirty queries, and at every query that
   may attend to its dirty keys and values.

A destination that is not needed has no effect; a unit that is not dirty keeps its cached value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.positions import Bools, Positions, PositionSets
from pahq_plugin.host import DestNode, Edge, PatchableModel
from pahq_plugin.host.graph import block, kind, slot, sources

Place = tuple[int, int, int]
"""A destination: (stage, slot, head); MLPs and the output have slot 0 and head 0."""

MOST_FEEDS = 1024
"""Number of memoised answers of `KeptGraph.feeds`."""

MOST_GROUPS = 3
"""Heads of a stage are grouped by the positions they are computed at; with more groups than this, all
are computed at the union of their positions instead."""


@dataclass(frozen=True)
class Stage:
    """One step of the forward pass.

    Attributes:
        kind: ``"head"``, ``"mlp"`` or ``"output"``.
        layer: the transformer block.
        n_sources: the stage reads sources ``0 .. n_sources - 1``.
        slots: 3 for heads with separate Q, K, V inputs, else 1.
        heads: number of heads; 1 for an MLP or the output.
        first_source: index of its first source; -1 for the output.
    """

    kind: Literal["head", "mlp", "output"]
    layer: int
    n_sources: int
    slots: int
    heads: int
    first_source: int


@dataclass(frozen=True)
class Shape:
    """The properties of the prompts that decide where a change can be seen.

    Attributes:
        length: number of positions of a prompt.
        outputs: positions at which the metric reads the output, ``[pos]`` of bool.
        causal: whether a position sees only earlier ones.
        first_change: positions before this never differ between clean and ablated runs.
    """

    length: int
    outputs: Bools
    causal: bool
    first_change: int


@dataclass(frozen=True)
class Slot:
    """Dirty inputs of one kind (query, key, value) in a group of heads.

    Attributes:
        members: indices into the group's heads.
        positions: positions at which they are recomputed.
    """

    members: tuple[int, ...]
    positions: Positions


@dataclass(frozen=True)
class Step:
    """Units of one stage that are recomputed together.

    Attributes:
        stage: index of the stage.
        heads: heads of the group; ``(0,)`` for an MLP or the output.
        positions: positions of their outputs that are recomputed.
        slots: dirty inputs by slot of the stage.
    """

    stage: int
    heads: tuple[int, ...]
    positions: Positions
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Feed:
    """Destinations that read the same subset of some sources.

    Attributes:
        members: indices into the destinations in question.
        chosen: indices into the sources in question, ascending.
        weights: 0 or 1 for each chosen source at each position, ``[source, pos]``; ``None`` for all 1.
    """

    members: tuple[int, ...]
    chosen: tuple[int, ...]
    weights: Tensor | None


class KeptGraph:
    """Which edges are kept, by stage.

    ``kept[stage]`` is ``[slot, head, pos, source]`` of bool; the position axis has length 1 unless the
    graph is position-wise.
    """

    def __init__(self, model: PatchableModel, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.sets = PositionSets(shape.length, device)
        self.outputs = self.sets.of(shape.outputs)
        self.positional = model.seq_len is not None
        self.stages = _stages(model)
        self.kept = [self._all_kept(stage) for stage in self.stages]
        self.n_sources = len(model.srcs)
        self.removals = [0] * len(self.stages)
        self._stage_of = {(s.kind, s.layer): i for i, s in enumerate(self.stages)}
        self._needs: list[Bools] | None = None
        self._needed: list[Any] = []  # whether each [slot][head] of a stage is needed anywhere
        # By name, since a string caches its hash and a node computes it again each time.
        self._places = {dest.name: self._place(dest) for dest in model.dests}
        self._feeds: dict[tuple[object, ...], tuple[int, list[Feed]]] = {}

    def _all_kept(self, stage: Stage) -> Bools:
        positions = self.shape.length if self.positional else 1
        return np.ones((stage.slots, stage.heads, positions, stage.n_sources), dtype=bool)

    def place(self, edge: Edge) -> Place:
        """Return the destination of ``edge``."""
        return self._places[edge.dest.name]

    def _place(self, dest: DestNode) -> Place:
        which = kind(dest)
        stage = self._stage_of[which, block(dest)]  # type: ignore[index]
        letter = slot(dest) if which == "head" else "attn"
        return stage, "qkv".find(letter) if letter != "attn" else 0, dest.head_idx or 0

    def index(self, edge: Edge) -> tuple[int, tuple[int, int, int, int]]:
        """Return the stage of ``edge`` and its index in that stage's ``kept`` array."""
        stage, which, head = self.place(edge)
        return stage, (which, head, edge.seq_idx or 0, edge.src.src_idx)

    def remove(self, edges: Sequence[Edge]) -> None:
        """Remove edges from the graph.

        If a destination is not needed, nothing else depends on which of its edges are kept.
        """
        matters = {place for place in map(self.place, edges) if self.is_needed(place)}
        for edge in edges:
            stage, at = self.index(edge)
            self.kept[stage][at] = False
        for stage, _, _ in matters:
            self.removals[stage] += 1
            self._needs = None

    def reset(self) -> None:
        """Keep every edge again."""
        self.kept = [self._all_kept(stage) for stage in self.stages]
        self.removals = [0] * len(self.stages)
        self._needs = None
        self._feeds.clear()

    def feeds(
        self, at: int, slot: int, heads: tuple[int, ...], step: Step, positions: Positions
    ) -> list[Feed]:
        """Return how the sources of ``step`` feed some destinations of stage ``at``.

        Args:
            at: the reading stage.
            slot: which input of its heads.
            heads: which heads.
            step: an earlier step of the cone.
            positions: positions at which the destinations read.
        """
        where = id(positions) if self.positional else 0
        key = (at, slot, heads, step.stage, step.heads, where)
        found = self._feeds.get(key)
        if found is None or found[0] != self.removals[at]:
            if len(self._feeds) >= MOST_FEEDS:
                self._feeds.clear()
            found = self._feeds[key] = (self.removals[at], self._find_feeds(*key[:3], step, positions))
        return found[1]

    def _find_feeds(
        self, at: int, slot: int, heads: tuple[int, ...], step: Step, positions: Positions
    ) -> list[Feed]:
        columns = self.stages[step.stage].first_source + np.array(step.heads)
        if columns[0] >= self.stages[at].n_sources:  # another group of the same stage
            return []
        kept = self.kept[at][slot, list(heads)][:, :, columns]  # [head, pos or 1, source]
        if self.positional:
            kept = kept[:, positions.array]
        members: dict[bytes, list[int]] = {}
        for i, pattern in enumerate(kept):
            if pattern.any():
                members.setdefault(pattern.tobytes(), []).append(i)
        feeds = []
        for group in members.values():
            pattern = kept[group[0]]
            chosen = np.flatnonzero(pattern.any(axis=0))
            weights = None
            if not pattern[:, chosen].all():
                weights = torch.from_numpy(pattern[:, chosen].T.copy()).to(positions.index.device)
            feeds.append(Feed(tuple(group), tuple(int(c) for c in chosen), weights))
        return feeds

    def needs(self, stage: int) -> Bools:
        """Return where each destination of ``stage`` is needed, ``[slot, head, pos]`` of bool.

        This depends only on the edges into later stages.
        """
        if self._needs is None:
            self._needs = self._all_needs()
            self._needed = [needs.any(axis=-1).tolist() for needs in self._needs]
        return self._needs[stage]

    def is_needed(self, place: Place) -> bool:
        """Return whether a change at this destination can reach the output at all."""
        stage, which, head = place
        self.needs(stage)
        return self._needed[stage][which][head]

    def _all_needs(self) -> list[Bools]:
        read = np.zeros((self.n_sources, self.shape.length), dtype=bool)
        needs: list[Bools] = [np.zeros(0, dtype=bool)] * len(self.stages)
        for at in reversed(range(len(self.stages))):
            stage = self.stages[at]
            if stage.kind == "output":
                needs[at] = self.shape.outputs[None, None, :]
            else:
                outputs = read[stage.first_source : stage.first_source + stage.heads]
                needs[at] = self._input_needs(stage, outputs)
            read[: stage.n_sources] |= _read_by(self.kept[at], needs[at])
        return needs

    def _input_needs(self, stage: Stage, outputs: Bools) -> Bools:
        """Return where outputs at ``[head, pos]`` depend on each input, ``[slot, head, pos]``."""
        if stage.kind == "mlp":
            return outputs[None]
        attended = self._attended(outputs)
        if stage.slots == 1:
            return (outputs | attended)[None]
        return np.stack([outputs, attended, attended])

    def _attended(self, queries: Bools) -> Bools:
        """Return the key positions that queries at ``[head, pos]`` may attend to."""
        if not self.shape.causal:
            return np.broadcast_to(queries.any(axis=-1, keepdims=True), queries.shape)
        return np.logical_or.accumulate(queries[..., ::-1], axis=-1)[..., ::-1]

    def _attending(self, keys: Bools) -> Bools:
        """Return the query positions that may attend to keys at ``[head, pos]``."""
        if not self.shape.causal:
            return np.broadcast_to(keys.any(axis=-1, keepdims=True), keys.shape)
        return np.logical_or.accumulate(keys, axis=-1)

    def cone(self, starts: dict[Place, Bools]) -> list[Step]:
        """Return what has to be recomputed when the inputs in ``starts`` change.

        Args:
            starts: for each destination the positions at which its input changes, ``[pos]`` of bool.

        Returns:
            Steps in the order of the forward pass; empty if the change cannot reach the output.
        """
        changed = np.arange(self.shape.length) >= self.shape.first_change
        dirty_sources = np.zeros((self.n_sources, self.shape.length), dtype=bool)
        steps: list[Step] = []
        for at in range(min(place[0] for place in starts), len(self.stages)):
            stage, needs = self.stages[at], self.needs(at)
            dirty = _fed_by(self.kept[at], dirty_sources[: stage.n_sources])
            for (where, which, head), positions in starts.items():
                if where == at:
                    dirty[which, head] |= positions
            dirty &= needs & changed
            if not dirty.any():
                continue
            outputs = self._dirty_outputs(stage, dirty, needs)
            steps += self._grouped(at, stage, dirty, outputs)
            if stage.kind != "output":
                rows = slice(stage.first_source, stage.first_source + stage.heads)
                dirty_sources[rows] = outputs
        return steps

    def _dirty_outputs(self, stage: Stage, dirty: Bools, needs: Bools) -> Bools:
        """Return the positions at which outputs change and are needed, ``[head, pos]``."""
        if stage.kind != "head":
            return dirty[0]
        if stage.slots == 1:  # computing a query where only its key is needed is harmless
            return self._attending(dirty[0]) & needs[0]
        return (dirty[0] | self._attending(dirty[1] | dirty[2])) & needs[0]

    def _grouped(self, at: int, stage: Stage, dirty: Bools, outputs: Bools) -> list[Step]:
        """Return the steps of one stage, with heads grouped by their output positions."""
        groups: dict[bytes, list[int]] = {}
        for head in np.flatnonzero(outputs.any(axis=-1)):
            groups.setdefault(outputs[head].tobytes(), []).append(int(head))
        if len(groups) > MOST_GROUPS:
            groups = {b"": sorted(head for heads in groups.values() for head in heads)}
        return [self._step(at, stage, dirty, outputs, heads) for heads in groups.values()]

    def _step(self, at: int, stage: Stage, dirty: Bools, outputs: Bools, heads: list[int]) -> Step:
        positions = self.sets.of(np.any(outputs[heads], axis=0))
        slots = []
        for which in range(stage.slots):
            own = dirty[which, heads]  # [head, pos]
            members = tuple(int(m) for m in np.flatnonzero(own.any(axis=-1)))
            slots.append(Slot(members, self.sets.of(np.any(own, axis=0))))
        return Step(at, tuple(heads), positions, tuple(slots))

    @cached_property
    def source_stage(self) -> list[tuple[int, int]]:
        """Stage and head of each source; stage -1 for the input."""
        table = [(-1, 0)] * self.n_sources
        for at, stage in enumerate(self.stages):
            if stage.kind != "output":
                for head in range(stage.heads):
                    table[stage.first_source + head] = (at, head)
        return table

    def sources_of(self, at: int) -> list[int]:
        """Return the indices of the sources of a stage that is not the output; stage -1 is the input."""
        if at < 0:
            return [0]
        stage = self.stages[at]
        return list(range(stage.first_source, stage.first_source + stage.heads))


def _stages(model: PatchableModel) -> list[Stage]:
    """Return the stages in the order of the forward pass."""
    ordered = sources(model)
    first: dict[tuple[str, int], int] = {}
    for source in ordered:
        first.setdefault((kind(source), block(source)), source.src_idx)
    found: dict[tuple[str, int], list[object]] = {}
    for dest in model.dests:
        found.setdefault((kind(dest), block(dest)), []).append(dest)
    stages = []
    for (which, layer), dests in found.items():
        n_sources = sum(source.layer < dests[0].layer for source in ordered)  # type: ignore[attr-defined]
        slots = 3 if which == "head" and model.separate_qkv else 1
        stages.append(
            Stage(
                kind=which,  # type: ignore[arg-type]
                layer=layer,
                n_sources=n_sources,
                slots=slots,
                heads=len(dests) // slots,
                first_source=-1 if which == "output" else first[which, layer],
            )
        )
    order = {"head": 0, "mlp": 1, "output": 2}
    return sorted(stages, key=lambda s: (s.layer, order[s.kind]))


def _read_by(kept: Bools, needs: Bools) -> Bools:
    """Return where each source is read, ``[source, pos]``, by destinations needed at
    ``[slot, head, pos]``."""
    if kept.shape[2] == 1:
        links = kept[:, :, 0].reshape(-1, kept.shape[-1]).astype(np.float32)
        return np.greater(links.T @ needs.reshape(-1, needs.shape[-1]).astype(np.float32), 0)
    return np.any(kept & needs[..., None], axis=(0, 1)).T


def _fed_by(kept: Bools, dirty: Bools) -> Bools:
    """Return where dirty sources ``[source, pos]`` feed destinations, ``[slot, head, pos]``."""
    if kept.shape[2] == 1:
        return np.greater(kept[:, :, 0].astype(np.float32) @ dirty.astype(np.float32), 0)
    return np.any(kept & dirty.T, axis=-1)
