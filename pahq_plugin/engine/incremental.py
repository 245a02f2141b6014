"""The incremental engine: recompute only what a removed edge can change, for many candidates at once.

1. If nothing that reaches the output reads the candidates' destination, their effect is zero and
   nothing is run.
2. Otherwise take the next candidates into one destination as rows of one pass (see `rows`):
   row i is the present state without the candidates before i that are predicted to go, and without
   candidate i. One pass gives the effect of each, provided that the predictions come true.
3. When edges are removed, the row that has just them gone becomes the present state.

In the model's own precision only the order of summation differs from the host's forward. Given a
`PrecisionConfig`, passes screen in mixed precision (see `products`): the present state runs
along as a further row, so that rounding common to all rows cancels in their differences, and removed
edges are committed by a pass of their own in full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from operator import or_

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pahq_plugin.activations import ablated_runs, run_sources
from pahq_plugin.attention import Investigation
from pahq_plugin.config import PrecisionConfig
from pahq_plugin.engine.products import Products, ScreenedProducts
from pahq_plugin.engine.rows import Rows, Start, row_logits
from pahq_plugin.engine.state import BatchState
from pahq_plugin.errors import MetricError
from pahq_plugin.graph import Bools, KeptGraph, Place, Shape, Step
from pahq_plugin.host import AblationType, Edge, PatchableModel, PromptDataLoader, PromptPairBatch
from pahq_plugin.host.blocks import output_positions
from pahq_plugin.host.graph import edge_label
from pahq_plugin.host.patching import clean_runs
from pahq_plugin.metrics import Metric, row_losses
from pahq_plugin.policy import high_parts
from pahq_plugin.weights import LowWeights

ROW_BYTES = 48 * 2**20
"""Rows of one pass are chosen so that their tensors take about this much."""

LEAST_ROWS = 16
MEMO_BYTES = 32 * 2**20


@dataclass
class _Pass:
    """The last pass, in case one of its rows becomes the present state."""

    candidates: list[Edge]
    predicted_kept: list[bool]
    rows: list[Rows]
    losses: list[float]


class IncrementalEngine:
    """Engine on factorised caches; see the module's docstring.

    Args:
        model: a host model for which `pahq_plugin.host.blocks.unsupported` has no objection.
        loader: for ablations that average over the data set.
        prompts: the batches that the loss averages over.
        ablation: what removed edges carry.
        metric: name and function.
        precision: screens in this mixed precision; ``None`` measures everything exactly.
        row_bytes: memory for the rows of one pass.
        storage: dtype of the cached source outputs; FP32 (or the model's wider dtype) is exact.
    """

    name = "incremental"

    def __init__(
        self,
        model: PatchableModel,
        loader: PromptDataLoader,
        prompts: list[PromptPairBatch],
        ablation: AblationType,
        metric: tuple[str, Metric],
        precision: PrecisionConfig | None = None,
        row_bytes: int = ROW_BYTES,
        storage: torch.dtype | None = None,
    ) -> None:
        self.evaluations = 0
        self._model, self._metric, self._row_bytes = model, metric, row_bytes
        dtype = storage or model.cfg.dtype
        runs = clean_runs(model, prompts)
        self._graph = KeptGraph(model, _shape(model, prompts, ablation))
        ablated = ablated_runs(model, loader, prompts, ablation, dtype)
        self._states = [
            BatchState(
                model,
                run,
                self._graph,
                run_sources(model, run.batch.clean, dtype),
                sources,
                MEMO_BYTES,
            )
            for run, sources in zip(runs, ablated, strict=True)
        ]
        self._storage = dtype
        length = prompts[0].clean.shape[1]
        self._drops_position = output_positions(model, length)[1]
        self.loss = self._clean_loss()
        self._loss = self.loss
        self._limit = self.lookahead = max(LEAST_ROWS, len(model.srcs))
        self._screen = None if precision is None else _Screen(model, precision)
        self._last: _Pass | None = None
        self._asked: list[Edge] | None = None
        self._plans: dict[tuple[Place, bytes], tuple[tuple[int, ...], list[Step]]] = {}

    @property
    def screens(self) -> bool:
        """Whether a mixed precision was given."""
        return self._screen is not None

    # The protocol --------------------------------------------------------------------------------

    @torch.inference_mode()
    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """See `Engine.effects`; answers candidates into the first one's destination."""
        self._adapt(candidates)
        place = self._graph.place(candidates[0])
        group = list(takewhile(lambda edge: self._graph.place(edge) == place, candidates))
        self._last = self._asked = None
        if not self._graph.is_needed(place):
            return [0.0] * len(group)
        steps, touched = self._plan(place, group)
        if not steps:
            return [0.0] * len(group)
        group = self._asked = group[: self._row_limit(steps)]
        kept = list(predicted_kept[: len(group)])
        try:
            return self._group_effects(place, steps, touched, group, kept, exact)
        except MetricError as error:
            if len(group) == 1:
                raise MetricError(f"at edge {edge_label(group[0])}: {error}") from error
            # Perhaps a row that assumed a wrong prediction: take the first candidate alone.
            return self.effects(group[:1], kept[:1], exact=exact)

    def _group_effects(
        self,
        place: Place,
        steps: list[Step],
        touched: Bools,
        group: list[Edge],
        kept: list[bool],
        exact: bool,
    ) -> list[float]:
        """Effects of candidates into one destination, by one pass."""
        starts = [self._start(state, place, group, kept, touched) for state in self._states]
        if self._screen is not None and not exact:
            with_present = [{place: _with_present(start)} for start in starts]
            products = self._screen.products(group)
            _, (present, *losses) = self._run(steps, with_present, len(group) + 1, products)
            return _differences(kept, losses, present)
        rows, losses = self._run(steps, [{place: start} for start in starts], len(group))
        self._last = _Pass(group, kept, rows, losses)
        return _differences(kept, losses, self._loss)

    @torch.inference_mode()
    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`."""
        if not edges:
            return
        last, self._last = self._last, None
        row = None if last is None else _matching_row(last, edges)
        if last is not None and row is not None:
            for rows in last.rows:
                rows.commit(row)
            self._loss = last.losses[row]
            self._graph.remove(edges)
        else:
            self._advance(edges)

    @torch.inference_mode()
    def restore(self, removed: Sequence[Edge]) -> None:
        """See `Engine.restore`: start again from the clean state and remove all at once."""
        self._last = None
        self._graph.reset()
        self._plans.clear()
        for state in self._states:
            state.restart(run_sources(self._model, state.run.batch.clean, self._storage))
        self._loss = self.loss
        if removed:
            self._advance(removed)

    # Passes --------------------------------------------------------------------------------------

    def _advance(self, edges: Sequence[Edge]) -> None:
        """Remove edges, of any destinations, by a pass of a single row.

        The inputs of their destinations are forgotten first: computed afresh, they lack the removed
        edges, and only changes of sources are left to add.
        """
        touched = self._touched_places(edges)
        for state in self._states:
            for place in touched:
                state.drop_read(*place)
        self._graph.remove(edges)
        live = {place: at for place, at in touched.items() if self._graph.is_needed(place)}
        steps = self._graph.cone(live) if live else []
        if not steps:
            return
        rows, losses = self._run(steps, [{}] * len(self._states), 1)
        for each in rows:
            each.commit(0)
        self._loss = losses[0]

    def _run(
        self,
        steps: list[Step],
        starts: Sequence[dict[Place, Start]],
        n_rows: int,
        products: Products | None = None,
    ) -> tuple[list[Rows], list[float]]:
        """All batches through the cone; returns the rows of each and the losses averaged over them."""
        rows = [
            Rows(state, steps, start, n_rows, products)
            for state, start in zip(self._states, starts, strict=True)
        ]
        self.evaluations += n_rows
        losses = torch.stack([self._losses(each) for each in rows]).mean(dim=0)
        return rows, losses.tolist()

    def _losses(self, rows: Rows) -> Tensor:
        """Loss of each row, FP64 ``[candidate]``, a few rows at a time."""
        assert rows.final is not None  # every cone ends at the output
        run = rows.state.run
        chunk = max(1, self._row_bytes // (4 * 8 * run.logits.numel()))
        return torch.cat(
            [
                row_losses(
                    *self._metric,
                    row_logits(rows.state, part, self._drops_position),
                    run.logits,
                    run.batch,
                )
                for part in rows.final.split(chunk)
            ]
        )

    def _clean_loss(self) -> float:
        """Loss of the model with every edge kept, averaged over the batches."""
        losses = [
            row_losses(*self._metric, s.run.logits[None], s.run.logits, s.run.batch)
            for s in self._states
        ]
        return float(torch.cat(losses).mean())

    # Starts --------------------------------------------------------------------------------------

    def _start(
        self,
        state: BatchState,
        place: Place,
        group: Sequence[Edge],
        predicted_kept: Sequence[bool],
        touched: Bools,
    ) -> Start:
        """Change of the destination's input on each row: minus (now - ablated) of what has gone."""
        positions = np.flatnonzero(touched & self._graph.needs(place[0])[place[1], place[2]])
        where = state.index(positions)
        single = state.differences([edge.src.src_idx for edge in group], where)
        if self._graph.positional:
            at = torch.tensor([edge.seq_idx for edge in group], device=where.device)
            single *= (at[:, None] == where)[:, None, :, None]
        gone = torch.zeros_like(single[0])
        for row, is_kept in zip(single, predicted_kept, strict=True):
            torch.sub(gone, row, out=row)
            gone = gone if is_kept else row
        return Start(positions, single)

    def _plan(self, place: Place, group: Sequence[Edge]) -> tuple[list[Step], Bools]:
        """The cone of the group's destination; the same until an edge behind it goes."""
        touched = self._touched(group)
        key, version = (place, touched.tobytes()), tuple(self._graph.removals[place[0] + 1 :])
        if key not in self._plans or self._plans[key][0] != version:
            self._plans[key] = (version, self._graph.cone({place: touched}))
        return self._plans[key][1], touched

    def _touched(self, group: Sequence[Edge]) -> Bools:
        """Positions ``[pos]`` of bool at which edges act."""
        length = self._graph.shape.length
        if not self._graph.positional:
            return np.ones(length, dtype=bool)
        touched = np.zeros(length, dtype=bool)
        touched[[edge.seq_idx or 0 for edge in group]] = True
        return touched

    def _touched_places(self, edges: Sequence[Edge]) -> dict[Place, Bools]:
        groups: dict[Place, list[Edge]] = {}
        for edge in edges:
            groups.setdefault(self._graph.place(edge), []).append(edge)
        return {place: self._touched(group) for place, group in groups.items()}

    # Sizes ---------------------------------------------------------------------------------------

    def _row_limit(self, steps: Sequence[Step]) -> int:
        """Rows of one pass, by memory and by how far earlier predictions held."""
        inputs, changes = zip(*(self._step_bytes(step) for step in steps), strict=True)
        return max(1, min(self._limit, int(self._row_bytes // (3 * max(inputs) + sum(changes)))))

    def _step_bytes(self, step: Step) -> tuple[int, int]:
        """Bytes of one row: of what a step works on, and of the changes that it leaves behind."""
        cfg, stage = self._model.cfg, self._graph.stages[step.stage]
        unit = len(self._states[0].run.batch.clean) * cfg.dtype.itemsize
        inputs = sum(len(slot.members) * len(slot.positions) for slot in step.slots) * cfg.d_model
        if stage.kind == "head":
            return inputs * unit, len(step.heads) * len(step.positions) * cfg.d_head * unit
        wide = cfg.d_mlp if stage.kind == "mlp" else 0
        return (inputs + len(step.positions) * wide) * unit, inputs * unit

    def _adapt(self, candidates: Sequence[Edge]) -> None:
        """More rows after a pass that was used up, fewer after one that was cut short."""
        if self._asked is None:
            return
        if candidates[0] in self._asked:
            used = self._asked.index(candidates[0])
            self._limit = max(LEAST_ROWS, 2 * used)
        else:
            self._limit = min(self.lookahead, 2 * self._limit)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cached activations of all batches."""
        return sum(state.nbytes for state in self._states)


class _Screen:
    """Mixed-precision products for whatever candidates are under test."""

    def __init__(self, model: PatchableModel, precision: PrecisionConfig) -> None:
        self._shared = Investigation(precision, LowWeights(precision.scale))
        self._products = ScreenedProducts(model, self._shared)

    def products(self, group: Sequence[Edge]) -> Products:
        """Products in which the parts are high that the policy keeps so for ``group``."""
        parts = (high_parts(self._shared.precision.policy, edge) for edge in group)
        self._shared.high = reduce(or_, parts)
        return self._products


def _with_present(start: Start) -> Start:
    """A first row in which nothing changes."""
    return Start(start.positions, functional.pad(start.delta, (0, 0, 0, 0, 0, 0, 1, 0)))


def _differences(predicted_kept: Sequence[bool], losses: Sequence[float], before: float) -> list[float]:
    """Each row's loss minus that of the state before its candidate."""
    effects = []
    for is_kept, loss in zip(predicted_kept, losses, strict=True):
        effects.append(loss - before)
        if not is_kept:
            before = loss
    return effects


def _matching_row(last: _Pass, edges: Sequence[Edge]) -> int | None:
    """The row of the last pass in which exactly ``edges`` are gone."""
    if edges[-1] not in last.candidates:
        return None
    row = last.candidates.index(edges[-1])
    ahead = zip(last.candidates[:row], last.predicted_kept[:row], strict=True)
    gone = [edge for edge, is_kept in ahead if not is_kept]
    return row if gone == list(edges[:-1]) else None


def _shape(model: PatchableModel, prompts: Sequence[PromptPairBatch], ablation: AblationType) -> Shape:
    """Where changes can be seen. With causal attention and resampled activations nothing differs
    before the first token in which clean and corrupt prompts do."""
    length = prompts[0].clean.shape[1]
    outputs = np.zeros(length, dtype=bool)
    outputs[output_positions(model, length)[0]] = True
    causal = model.cfg.attention_dir == "causal"
    first = 0
    if causal and ablation is AblationType.RESAMPLE:
        differs = torch.stack([(b.clean != b.corrupt).any(dim=0) for b in prompts]).any(dim=0)
        first = int(differs.int().argmax()) if bool(differs.any()) else length
    return Shape(length, outputs, causal, first)
