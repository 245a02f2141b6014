"""The effect of each edge alone: the full model with exactly one edge patched per row.

1. Edges into one stage that act at one position (or at all) go through passes together.
2. An edge whose source carries its ablated output already, or that acts where nothing is read, has no
   effect and needs no row.
3. A row is a plain forward from its destination's stage on, see `lone_rows` and `onward`.
4. The effect is the row's loss minus the loss of the full model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import torch

from pahq_plugin.engines.incremental.batching import RowCap
from pahq_plugin.engines.incremental.budget import lone_bytes, lone_row_bytes
from pahq_plugin.engines.incremental.cones import first_changes
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.incremental.full_model import FullModel, Layout
from pahq_plugin.engines.incremental.lone_rows import LonePass, LoneRow
from pahq_plugin.engines.incremental.memo import Memo, Versioned
from pahq_plugin.engines.incremental.positions import Bools, Ints
from pahq_plugin.engines.incremental.prompt_groups import PromptGroup, prompt_groups
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import MetricError
from pahq_plugin.host import Edge
from pahq_plugin.labels import edge_label
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.memory import is_out_of_memory

MOST_ROWS = 4096
"""Rows of the largest pass."""


class AloneEngine(IncrementalEngine):
    """Measures the effect of each edge alone; see the module's docstring.

    Args:
        question: a question whose host model `pahq_plugin.models.blocks.unsupported` accepts.
        precision: precision in which `effects` screens; `alone` is exact always.
        memory: bytes for the rows of one pass; ``None`` for the default of the device.
    """

    def __init__(
        self, question: Question, precision: PrecisionConfig | None = None, *, memory: int | None = None
    ) -> None:
        super().__init__(question, precision, memory=memory)
        everyone = question.everyone or question.prompts
        self._most_prompts = -(-len(everyone[0].clean) // question.world.size)
        self._layout = Layout(self._graph)
        weights: Memo[Versioned] = Memo(self._budget.maps)
        share = self._budget.memo // len(self._states)
        self._full = [FullModel(state, self._layout, weights, share) for state in self._states]
        self._firsts = [first_changes(question.model, b, question.ablation) for b in question.prompts]
        limited = memory is not None or self._placement.passes is not None
        device = everyone[0].clean.device
        self._lone_bytes = self._budget.rows if limited else lone_bytes(device)
        self._row_cap = RowCap(MOST_ROWS)
        self._differs: Bools | None = None

    def in_turn(self, edges: Sequence[Edge]) -> list[Edge]:
        """Sort edges in the order in which `alone` measures them: stages from the output back, so that
        edges of one pass stand together."""

        def key(edge: Edge) -> tuple[int, ...]:
            stage, (slot, head, position, source) = self._graph.index(edge)
            return -stage, -position, source, slot, head

        return sorted(edges, key=key)

    @torch.inference_mode()
    def alone(self, edges: Sequence[Edge]) -> list[float]:
        """Measure the effects of the first one or more edges, each patched alone in the full model.

        Args:
            edges: in the order of `in_turn`, at least one.

        Returns:
            For each answered edge the loss with only it patched minus the loss of the full model, in
            the model's own precision.

        Raises:
            MetricError: a loss is not finite; the message names the edge.
        """
        assert not any(self._graph.removals)  # nothing has been removed
        together = self._of_one_pass(edges)
        live = self._live(together)
        fit = min(self._row_cap.rows, self._fitting(together[0]))
        many = int(np.searchsorted(np.cumsum(live), fit, side="right"))
        return self._measured(together[:many], live[:many])

    def _measured(self, edges: Sequence[Edge], live: Bools) -> list[float]:
        """Measure edges in one pass, fewer of them after an error."""
        own = [edge for edge, is_live in zip(edges, live, strict=True) if is_live]
        if not own:
            return [0.0] * len(edges)
        try:
            losses = self._losses(own)
        except MetricError as error:
            if len(own) == 1:
                raise MetricError(f"at edge {edge_label(own[0])}: {error}") from error
            most = len(own) // 2
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._world.size > 1:  # other processes would wait
                raise
            self._row_cap.rows = min(self._row_cap.rows, len(own))
            self._row_cap.shrink(error)
            most = self._row_cap.rows
        else:
            self._row_cap.passed()
            found = dict(zip(own, losses, strict=True))
            return [found[edge] - self.loss if edge in found else 0.0 for edge in edges]
        # Out here the error is freed, and with its frames the tensors of the pass.
        many = int(np.searchsorted(np.cumsum(live), most, side="right"))
        return self._measured(edges[:many], live[:many])

    def _losses(self, edges: Sequence[Edge]) -> list[float]:
        """Run a pass; return the loss of each edge's row, averaged over all prompts."""
        at, (_, _, position, _) = self._graph.index(edges[0])
        places = [self._graph.index(edge)[1] for edge in edges]
        rows = [LoneRow(slot, head, source) for slot, head, _, source in places]
        order = sorted(range(len(rows)), key=lambda i: rows[i].slot)
        ordered = [rows[i] for i in order]
        where = position if self._graph.positional else None
        finals = []
        for full, firsts in zip(self._full, self._firsts, strict=True):
            full.state.next_round()
            full.next_round()
            groups = self._groups(firsts, where)
            finals.append(LonePass(full, groups, at, where, ordered, self._budget.work).final())
        self.evaluations += len(edges)
        self._placement.unembedding()
        pairs = list(zip(finals, self._readouts, strict=True))
        losses = self._mean(
            lambda: torch.stack([readout.losses(final) for final, readout in pairs]), len(edges)
        )
        back = {i: loss for i, loss in zip(order, losses, strict=True)}
        return [back[i] for i in range(len(edges))]

    def _groups(self, firsts: Ints, position: int | None) -> list[PromptGroup]:
        """Group a batch's prompts for edges that act at ``position``, before which causal attention
        changes nothing.

        Args:
            firsts: per prompt the position before which nothing ever changes, ``[prompt]``.
            position: ``None`` for edges that act at all positions.
        """
        length = self._graph.shape.length
        if position is not None and self._graph.shape.causal:
            firsts = np.where(firsts <= position, position, length)
        return prompt_groups(firsts, length)

    # Which edges go together -----------------------------------------------------------------------

    def _of_one_pass(self, edges: Sequence[Edge]) -> list[Edge]:
        """Return the first edges, those into one stage that act at one position."""

        def key(edge: Edge) -> tuple[int, int]:
            stage, (_, _, position, _) = self._graph.index(edge)
            return stage, position

        first = key(edges[0])
        return list(takewhile(lambda edge: key(edge) == first, edges))

    def _live(self, edges: Sequence[Edge]) -> Bools:
        """Return for each edge whether patching it changes anything that is read, ``[edge]``."""
        differs, needs = self._different(), self._graph.needs(self._graph.place(edges[0])[0])
        live = np.zeros(len(edges), dtype=bool)
        for i, edge in enumerate(edges):
            _, (slot, head, position, source) = self._graph.index(edge)
            changes = differs[source] & needs[slot, head]
            live[i] = changes[position] if self._graph.positional else changes.any()
        return live

    def _different(self) -> Bools:
        """Return where each source differs from its ablated output in any prompt of any process,
        ``[source, pos]``."""
        if self._differs is None:
            every = self._graph.n_sources
            each = [state.differences.changing(every) for state in self._states]
            own: Bools = np.logical_or.reduce(each)
            self._differs = np.array(self._world.any(own.flatten().tolist())).reshape(own.shape)
        return self._differs

    def _fitting(self, edge: Edge) -> int:
        """Return how many rows into the edge's stage fit in one pass, the same in all processes."""
        stage = self._graph.place(edge)[0]
        nbytes = lone_row_bytes(stage, self._graph, self._model.cfg, self._most_prompts)
        return max(1, self._lone_bytes // nbytes)
