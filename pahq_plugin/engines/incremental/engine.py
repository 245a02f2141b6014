"""The incremental engine: recompute only what a removed edge can change, for many candidates at once.

1. If nothing that reaches the output reads the candidates' destination, their effects are zero and
   nothing is run.
2. Otherwise take the next candidates into destinations of one stage, which cannot influence each
   other, as rows of one pass (see `rows`). Row i is the present state without candidate i and without
   the candidates before it that are predicted to be removed. One pass gives the effect of each,
   provided that the predictions come true. A candidate has no effect and needs no row if its source
   already carries its ablated output.
3. When edges are removed, the row without exactly these edges becomes the present state.

In the model's own precision only the order of summation differs from the host's forward pass. Given a
`PrecisionConfig`, passes screen in mixed precision (see `products`): the present state is one more row,
so that rounding common to all rows cancels in their differences. Effects in doubt are settled by one
pass in full precision, and one of its rows becomes the present state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pahq_plugin.engines.incremental.batching import Batching
from pahq_plugin.engines.incremental.budget import RELEASE_BYTES, budget_for, budget_within
from pahq_plugin.engines.incremental.cones import Plans, first_changes, shape_of
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place, Step
from pahq_plugin.engines.incremental.passes import Group, Pass, Waiting
from pahq_plugin.engines.incremental.positions import Bools
from pahq_plugin.engines.incremental.products import FEW_ROWS, OwnProducts, Products, Screen
from pahq_plugin.engines.incremental.readout import Readout
from pahq_plugin.engines.incremental.rows import Rows
from pahq_plugin.engines.incremental.source_outputs import ablated_runs, run_plain, run_sources
from pahq_plugin.engines.incremental.starts import Start, changing_edges, starts_without
from pahq_plugin.engines.incremental.state import BatchState
from pahq_plugin.engines.placement.place import InPlace
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import MetricError
from pahq_plugin.host import Edge
from pahq_plugin.labels import edge_label
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.policy import check_parts
from pahq_plugin.system.memory import is_out_of_memory, release_unused


class IncrementalEngine:
    """Engine on factorised caches; see the module's docstring.

    Args:
        question: a question whose host model `pahq_plugin.models.blocks.unsupported` accepts.
        precision: screens in this mixed precision; ``None`` measures everything exactly.
        memory: bytes for the rows of one pass; ``None`` for the default of the device.
        storage: dtype of the cached source outputs; FP32 (or the model's wider dtype) is exact.
    """

    name = "incremental"

    def __init__(
        self,
        question: Question,
        precision: PrecisionConfig | None = None,
        *,
        memory: int | None = None,
        storage: torch.dtype | None = None,
    ) -> None:
        self.evaluations = 0
        model, prompts, ablation = question.model, question.prompts, question.ablation
        everyone, world = question.everyone or prompts, question.world
        device = prompts[0].clean.device
        self._model = model
        place = self._placement = question.placement or InPlace(model)
        self._budget = (
            budget_for(device, memory) if place.passes is None else budget_within(device, place.passes)
        )
        self._storage = storage or model.cfg.dtype
        self._world = world
        self._weights = [
            len(own.clean) / len(whole.clean) for own, whole in zip(prompts, everyone, strict=True)
        ]
        self._graph = KeptGraph(model, shape_of(model, everyone, ablation), device)
        ablated = ablated_runs(model, question.loader, prompts, ablation, self._storage, place)
        self._states, self._readouts = [], []
        own = self._own = OwnProducts(model, place, self._budget.maps)
        memo_bytes = self._budget.memo // len(prompts)
        for batch, sources in zip(prompts, ablated, strict=True):
            run = run_plain(model, batch.clean, self._storage, place)
            first = first_changes(model, batch, ablation)
            self._states.append(
                BatchState(
                    model, batch, run.padding, self._graph, run.sources, sources, memo_bytes, first, own
                )
            )
            final = run.final[:, self._graph.outputs.index]
            place.unembedding()
            self._readouts.append(Readout(model, batch, final, question.metric, self._budget.work))
        clean = torch.tensor([readout.clean_loss for readout in self._readouts], dtype=torch.float64)
        self.loss = self._present = self._mean(lambda: clean[:, None], 1)[0]
        self._freed = 0
        self._last: Pass | None = None
        self._waiting = Waiting([{} for _ in prompts])
        most = -(-len(everyone[0].clean) // world.size)  # the same rows fit everywhere
        self._plans = Plans(self._graph, model, most)
        self._batching = Batching(self._graph, self._plans, self._budget)
        self.lookahead = 4 * self._batching.most_rows  # most edges lead nowhere and need no row
        self._screen: Screen | None = None
        if precision is not None:
            self.screen_with(precision)

    @property
    def present_loss(self) -> float | None:
        """FP32 loss of the present state; unknown while removed edges wait, see `passes`."""
        return None if self._waiting.edges else self._present

    @property
    def screens(self) -> bool:
        """Whether a mixed precision was given."""
        return self._screen is not None

    def screen_with(self, precision: PrecisionConfig) -> None:
        """See `Engine.screen_with`.

        Raises:
            ConfigError: the model lacks a part that ``precision.formats`` names.
        """
        check_parts(self._model.cfg, precision)
        self.catch_up()
        self._last = None
        for state in self._states:
            state.forget_screened()
        self._screen = Screen(self._model, self._own, precision)

    # The protocol --------------------------------------------------------------------------------

    @torch.inference_mode()
    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """See `Engine.effects`; answers candidates into destinations of the first one's stage, or, when
        it screens whole values, into a single destination, whose head is high."""
        self._last = None
        screen = None if exact else self._screen
        if screen is None or not self._may_wait(candidates[0]):
            self.catch_up()
        few, budget = (
            (FEW_ROWS, self._budget.rows) if screen is None else (screen.few, self._budget.screened_rows)
        )
        group, steps = self._batching.next(candidates, self._waiting.edges, few, budget)
        if not steps:
            return [0.0] * len(group)
        kept = list(predicted_kept[: len(group)])
        try:
            return self._group_effects(group, kept, steps, screen)
        except MetricError as error:
            if len(group) == 1:
                raise MetricError(f"at edge {edge_label(group[0])}: {error}") from error
            # A row may have assumed a wrong prediction: take the first candidate alone.
            candidates, predicted_kept = group[:1], kept[:1]
        except (RuntimeError, MemoryError) as error:
            self._make_room(error)
        # Out here the error is freed, and with its frames the tensors of the pass.
        return self.effects(candidates, predicted_kept, exact=exact)

    def _may_wait(self, candidate: Edge) -> bool:
        """Return whether waiting edges may keep waiting while ``candidate`` is screened."""
        place = self._graph.place(candidate)
        return all(at[0] == place[0] for at in self._waiting.shifts[0])

    def _group_effects(
        self, candidates: list[Edge], kept: list[bool], steps: list[Step], screen: Screen | None
    ) -> list[float]:
        """Measure the effects of candidates into one stage in one pass."""
        group = Group(candidates, kept, self._changing(candidates))
        if screen is None or group.n_rows == 0:
            return _all_known(self._exact_effects(group, steps))
        return _all_known(self._screened_effects(group, steps, screen))

    def _screened_effects(self, group: Group, steps: list[Step], screen: Screen) -> list[float | None]:
        """Measure the effects of a group in mixed precision.

        If only changes are in low precision, a row without a change is exact. If whole values are, the
        state before the candidates is one more row.
        """
        spare = 0 if screen.only_changes else 1
        starts = self._starts(group.candidates, group.gone(spare))
        _, losses = self._run(steps, starts, group.n_rows + spare, screen.products(group.candidates))
        before = self._waiting.loss if self._waiting.edges else self._present
        before = losses.pop(0) if spare else before
        self._last = Pass(group, starts, [], losses, spare)
        return group.effects(losses, before)

    def _exact_effects(self, group: Group, steps: list[Step]) -> list[float | None]:
        """Measure the effects of a group in the model's own precision; its rows may be committed."""
        if group.n_rows == 0:
            self._last = Pass(group, [], [], [], 0)
            return group.effects([], self._present)
        spare = 1 if self._waiting.edges else 0
        starts = self._starts(group.candidates, group.gone(spare))
        rows, losses = self._run(steps, starts, group.n_rows + spare)
        before = losses.pop(0) if spare else self._present
        self._last = Pass(group, starts, rows, losses, spare)
        return group.effects(losses, before)

    @torch.inference_mode()
    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """See `Engine.settle`; one pass, with rows that can also be committed to remove candidates."""
        self._last = None
        steps = self._plans.cone([*candidates, *self._waiting.edges])
        asked = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        if not steps:
            return [0.0] * len(asked)
        # Each wanted candidate needs two rows (before and after it), the whole group one or two more.
        rows = self._batching.fitting_rows(steps)
        fit = max(1, rows // 2 - 1)
        if len(asked) > fit:
            candidates = candidates[: asked[fit - 1] + 1]
        size = len(candidates)
        try:
            effects = self._settled(candidates, predicted_kept[:size], wanted[:size], steps)
            return _all_known([effects[i] for i in asked[:fit]])
        except MetricError as error:
            upto = asked[0] + 1
            if size == upto:
                raise MetricError(f"at edge {edge_label(candidates[asked[0]])}: {error}") from error
            # A row may have assumed a wrong prediction: take the first one alone.
            candidates, predicted_kept, wanted = candidates[:upto], predicted_kept[:upto], wanted[:upto]
        except (RuntimeError, MemoryError) as error:
            self._make_room(error)
        return self.settle(candidates, predicted_kept, wanted)

    def _settled(
        self, candidates: Sequence[Edge], kept: Sequence[bool], wanted: Sequence[bool], steps: list[Step]
    ) -> list[float | None]:
        """Measure the effects of the wanted candidates in one pass."""
        return self._exact_effects(Group(candidates, kept, self._changing(candidates), wanted), steps)

    @torch.inference_mode()
    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`."""
        last, self._last = self._last, None
        is_needed = any(self._graph.is_needed(self._graph.place(edge)) for edge in edges)
        if not is_needed or (last is not None and last.group.is_inert(edges)):
            self._graph.remove(edges)
            return
        row = None if last is None else last.group.row_without(edges)
        if last is None or row is None:
            self._advance(edges)
        elif last.rows:
            last.commit(row)
            self._present = last.losses[row]
            self._graph.remove([*self._waiting.edges, *edges])
            self._waiting.clear()
        else:
            last.put_off(row, edges, self._waiting)
            if self._graph.positional:  # the next candidates act at other positions
                self.catch_up()

    @torch.inference_mode()
    def catch_up(self) -> None:
        """See `Engine.catch_up`."""
        if self._waiting.edges:
            self._advance([])

    @torch.inference_mode()
    def restore(self, removed: Sequence[Edge]) -> None:
        """See `Engine.restore`: start again from the clean state and remove all edges at once. How the
        state was reached before influences nothing that follows, not even its rounding."""
        self._last = None
        self._batching.restart()
        self._waiting.clear()
        self._graph.reset()
        self._plans.clear()
        self._placement.clear()
        for state in self._states:
            state.restart(run_sources(self._model, state.batch.clean, self._storage, self._placement))
        self._present = self.loss
        if removed:
            self._advance(removed)

    # Passes --------------------------------------------------------------------------------------

    def _advance(self, edges: Sequence[Edge]) -> None:
        """Remove edges into any destinations, and those that wait, in a pass with a single row.

        The inputs of their destinations are forgotten first. Recomputed, they lack the removed edges, so
        that only changes of sources are left to add.
        """
        edges = [*self._waiting.edges, *edges]
        self._waiting.clear()
        touched = {
            place: at
            for place, at in self._plans.touched_places(edges).items()
            if self._graph.is_needed(place)
        }
        for state in self._states:
            for place in touched:
                state.forget(*place)
        self._graph.remove(edges)
        live = {place: at for place, at in touched.items() if self._graph.is_needed(place)}
        steps = self._graph.cone(live) if live else []
        if not steps:
            return
        rows, losses = self._run(steps, [{}] * len(self._states), 1)
        for each in rows:
            each.commit(0)
        self._present = losses[0]

    def _run(
        self,
        steps: list[Step],
        starts: Sequence[dict[Place, Start]],
        n_rows: int,
        products: Products | None = None,
    ) -> tuple[list[Rows], list[float]]:
        """Run all batches through the cone; return each batch's rows, and losses averaged over all."""
        self._own.narrow_mlp.next_round()
        for state in self._states:
            state.next_round()
        rows = [
            Rows(state, steps, start, n_rows, self._budget, products)
            for state, start in zip(self._states, starts, strict=True)
        ]
        self.evaluations += n_rows
        self._placement.unembedding()
        unembedding = None if products is None else products.unembedding()
        each = list(zip(rows, self._readouts, strict=True))
        losses = self._mean(
            lambda: torch.stack([readout.losses(one.output, unembedding) for one, readout in each]),
            n_rows,
        )
        self._batching.cap.passed()
        self._freed += n_rows * self._plans.row_bytes(steps)
        if self._freed > RELEASE_BYTES:
            self._freed = 0
            release_unused()
        return rows, losses

    def _mean(self, compute: Callable[[], torch.Tensor], n_rows: int) -> list[float]:
        """Average the losses of rows over all prompts of all processes.

        Args:
            compute: returns this process's losses, FP64 ``[batch, row]``.
            n_rows: number of rows.
        """

        def own() -> torch.Tensor:
            losses = compute()
            if self._weights == [1.0]:
                return losses[0]
            weights = torch.tensor(self._weights, dtype=losses.dtype, device=losses.device)
            return (weights[:, None] * losses).mean(dim=0)

        return self._world.total(own, n_rows).tolist()

    def _changing(self, candidates: Sequence[Edge]) -> list[bool]:
        """Return for each candidate whether its removal changes an input that is needed, in any batch
        of any process."""
        each = [changing_edges(candidates, self._graph, self._plans, state) for state in self._states]
        return self._world.any([any(found) for found in zip(*each, strict=True)])

    def _starts(self, candidates: Sequence[Edge], gone: Bools) -> list[dict[Place, Start]]:
        """Compute how the inputs change on each row, for each batch."""
        return [
            starts_without(candidates, gone, self._graph, self._plans, state, shifts)
            for state, shifts in zip(self._states, self._waiting.shifts, strict=True)
        ]

    def _make_room(self, error: BaseException) -> None:
        """Make passes smaller if memory ran out, else re-raise ``error``.

        A pass can be repeated, since it changes nothing before it is committed. If not even a single
        row fits, a `ModelError` says so.
        """
        if not is_out_of_memory(error) or self._world.size > 1:  # other processes would wait
            raise error
        self._last = None
        self._batching.cap.shrink(error)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cached activations of all batches."""
        return sum(state.nbytes for state in self._states)


def _all_known(effects: Sequence[float | None]) -> list[float]:
    """Return ``effects`` after asserting that none is missing."""
    known = [effect for effect in effects if effect is not None]
    assert len(known) == len(effects)
    return known
