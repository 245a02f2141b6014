"""One host forward pass per edge: slow, obviously right, and the oracle for every faster engine.

For each candidate:

1. set its patch mask to 1 and run the host model from the lowest block with a patched edge;
2. the effect is the loss of that run minus the loss before patching the candidate, measured in the
   same precision and from the same block, so that rounding common to both cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pahq_plugin.engines.question import Question
from pahq_plugin.errors import MetricError
from pahq_plugin.host import Edge
from pahq_plugin.host.graph import block
from pahq_plugin.host.patching import PatchBatch, patched_logits
from pahq_plugin.labels import edge_label
from pahq_plugin.metrics import row_losses
from pahq_plugin.precision.backend import Backend
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.policy import EVERYTHING, HighParts

RunKey = tuple[HighParts, int | None]
"""Two runs are comparable if the same parts are high and both start at the same block."""


class HostEngine:
    """Engine on the host model's own forward.

    Args:
        question: a question whose host model `pahq_plugin.host.lending.borrowed` lends.
        batches: its prompts, prepared.
        backend: screens in mixed precision; ``None`` runs everything in the model's own precision.
    """

    name = "host"
    lookahead = 1
    snapshot_every = 64
    """Each row is a whole forward pass here, so losing 1,024 of them would be costly."""

    def __init__(
        self,
        question: Question,
        batches: Sequence[PatchBatch],
        backend: Backend | None = None,
    ) -> None:
        self.evaluations = 0
        self._model = model = question.model
        self._batches = batches
        self._metric = question.metric
        self._backend = backend
        self._world = question.world
        own = [len(prepared.batch.clean) for prepared in batches]
        sizes = [len(batch.clean) for batch in question.everyone] or own
        self._weights = [n / whole for n, whole in zip(own, sizes, strict=True)]
        self._sources = [prepared.clean.clone() for prepared in batches]
        self._last_start: list[int | None] = [None] * len(batches)
        self._removed: set[Edge] = set()
        self._before: dict[RunKey, float] = {}
        self._after: dict[RunKey, tuple[Edge, float]] = {}
        self._lowest = self._lowest_block(())
        self.loss = self._run((EVERYTHING, self._lowest if model.is_transformer else None))

    @property
    def present_loss(self) -> None:
        """Always unknown, since removing an edge runs nothing."""
        return None

    @property
    def screens(self) -> bool:
        """Whether there is a backend to screen with."""
        return self._backend is not None

    def screen_with(self, precision: PrecisionConfig) -> None:
        """See `Engine.screen_with`."""
        assert self._backend is not None  # it screens
        self._backend.use(precision)
        self._before.clear()
        self._after.clear()

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """See `Engine.effects`; answers the first candidate only."""
        edge = candidates[0]
        exact = exact or self._backend is None
        high = EVERYTHING if exact or self._backend is None else self._backend.parts_for(edge)
        key = self._key(high, edge)
        try:
            if key not in self._before:
                self._before[key] = self._run(key)
            after = self._run_patched(edge, key)
        except MetricError as error:
            raise MetricError(f"at edge {edge_label(edge)}: {error}") from error
        self._after[key] = (edge, after)
        return [after - self._before[key]]

    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """See `Engine.settle`; candidates are screened one at a time."""
        return self.effects(candidates, predicted_kept, exact=True)

    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`."""
        if not edges:
            return
        for edge in edges:
            self._set_mask(edge, 1.0)
            self._removed.add(edge)
        self._lowest = min(self._lowest, self._lowest_block(edges))
        # A run with exactly this edge patched in addition is the new "before" of its key.
        single = edges[0] if len(edges) == 1 else None
        self._before = {key: loss for key, (edge, loss) in self._after.items() if edge == single}
        self._after = {}

    def catch_up(self) -> None:
        """See `Engine.catch_up`; nothing is deferred."""

    def restore(self, removed: Sequence[Edge]) -> None:
        """See `Engine.restore`."""
        target = set(removed)
        for edge in self._removed ^ target:
            self._set_mask(edge, 1.0 if edge in target else 0.0)
        self._removed = target
        self._lowest = self._lowest_block(target)
        self._before, self._after = {}, {}

    def _run_patched(self, edge: Edge, key: RunKey) -> float:
        self._set_mask(edge, 1.0)
        try:
            return self._run(key)
        finally:
            self._set_mask(edge, 0.0)

    def _set_mask(self, edge: Edge, value: float) -> None:
        edge.patch_mask(self._model).data[edge.patch_idx] = value

    def _key(self, high: HighParts, edge: Edge) -> RunKey:
        """Return the key of runs with and without ``edge``: both start at the lowest patched block."""
        start = min(self._lowest, block(edge.dest)) if self._model.is_transformer else None
        return high, start

    def _lowest_block(self, edges: Iterable[Edge]) -> int:
        """Return the lowest block among the destinations of ``edges``, or the last block without any."""
        if not self._model.is_transformer:
            return 0
        return min((block(e.dest) for e in edges), default=self._model.cfg.n_layers - 1)

    def _run(self, key: RunKey) -> float:
        """Compute the loss with the present patch masks, averaged over the batches."""
        high, start = key
        self.evaluations += 1
        if self._backend is None:
            return self._mean(start)
        if high.everything:
            with self._backend.own_precision():
                return self._mean(start)
        self._backend.high = high
        return self._mean(start)

    def _mean(self, start: int | None) -> float:
        def own() -> torch.Tensor:
            losses = [self._batch_loss(i, start) for i in range(len(self._batches))]
            weighted = [w * loss for w, loss in zip(self._weights, losses, strict=True)]
            return torch.tensor([sum(weighted) / len(weighted)], dtype=torch.float64)

        return float(self._world.total(own, 1))

    @torch.inference_mode()
    def _batch_loss(self, i: int, start: int | None) -> float:
        prepared = self._batches[i]
        self._clean_below(i, start)
        logits = patched_logits(self._model, prepared, self._sources[i], start)
        return float(row_losses(*self._metric, logits[None], prepared.logits, prepared.batch))

    def _clean_below(self, i: int, start: int | None) -> None:
        """Reset the source outputs if this run starts at a later block than the last one.

        A run overwrites the source outputs from its start on, so a later start would otherwise read
        what the last run left in the blocks in between.
        """
        last = self._last_start[i]
        if start is not None and last is not None and start > last:
            self._sources[i].copy_(self._batches[i].clean)
        self._last_start[i] = start
