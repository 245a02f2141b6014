"""Edge activation patching: measure the exact effect of every edge, one at a time.

1. Patch one edge in the full model, all others kept. Its effect is the loss after minus the loss before.
2. Do so for every edge; the circuit is the edges of largest magnitude.

This is EActP of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151), and the method ``exact`` of
EAP-IG (Hanna et al. 2024, arXiv 2403.17806): what attribution methods approximate. Unlike in a search,
no edge is removed, so no effect depends on another or on an order.

With a precision, all edges are screened in low precision, and those of largest magnitude are measured
again in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby

from pahq_plugin.discovery.cost import forward_seconds, held_to, measured
from pahq_plugin.discovery.effects_file import EffectsFile, Measured
from pahq_plugin.discovery.identity import run_identity
from pahq_plugin.discovery.method import Found, Method, settings_of
from pahq_plugin.discovery.scores import rank_values
from pahq_plugin.engines.choose import make_engine, plan_search
from pahq_plugin.engines.each_alone import alone, in_turn, kept
from pahq_plugin.engines.incremental.alone import AloneEngine
from pahq_plugin.engines.placement.place import placed
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge
from pahq_plugin.models.checks import check_transformer
from pahq_plugin.precision.config import FULL_PRECISION, PrecisionConfig
from pahq_plugin.precision.policy import check_parts
from pahq_plugin.results.result import Stats
from pahq_plugin.system.progress import Bar, progress_bar, say

REFINED_SHARE = 0.1
"""Share of the edges that is measured again in FP32 if no circuit size is given."""


@dataclass(frozen=True)
class ExactEffects(Method):
    """Edge activation patching; see the module's docstring."""

    uses = frozenset(
        {
            "metric", "ablation", "engine", "batches", "n_edges", "refine", "precision",
            "checkpoint", "max_memory",
        }
    )  # fmt: skip
    draws = False
    shares_prompts = True

    def run(self, question: Question, stats: Stats) -> Found:
        """Measure within the memory budget, resuming from a checkpoint if there is one."""
        precision = _checked(question, self.name)
        everyone = question.everyone or question.prompts
        device = everyone[0].clean.device
        with ExitStack() as places, ExitStack() as stack:
            if question.max_memory is not None:
                plan, precision = plan_search(question, precision)
                say(str(plan), question.progress)
                placement = places.enter_context(placed(question.model, plan, device))
                stack.enter_context(held_to(plan, question.model, placement, device, stats))
                question = replace(question, placement=placement)
            refine = _refined(question) if precision.screens else 0
            file = self._file(question, precision, refine)
            start = question.world.share(
                lambda: None if file is None else stack.enter_context(file.held())
            )
            if start is not None and file is not None:
                done = f"{len(start.effects):,} effects are measured"
                say(f"going on from {file.path}: {done}", question.progress)
            with measured(stats, device), ExitStack() as context:
                engine = make_engine(question, precision, context, AloneEngine)
                total = len(question.edges) + refine
                bar = context.enter_context(progress_bar("edges", total, question.progress))
                run = _Run(engine, question.edges, start or Measured(), bar, file and file.take)
                effects, inexact = run.all_of_them(refine)
            stack.close()  # a plain forward takes memory and weights, too
            stats.forward_equivalents = stats.seconds / forward_seconds(question.model, everyone)
        stats.evaluations, stats.re_evaluations = run.evaluations, refine
        n_edges = question.n_edges
        if n_edges is not None:  # edges without an effect would all tie
            n_edges = min(n_edges, sum(effect != 0 for effect in effects.values()))
        return rank_values(effects, question.edges, n_edges, inexact), {
            "n_edges": question.n_edges,
            "metric": question.metric[0],
            "precision": precision.record() if inexact else None,
            "engine": engine.name,
        } | ({"refine": refine} if inexact else {})

    def _file(self, question: Question, precision: PrecisionConfig, refine: int) -> EffectsFile | None:
        """Return the checkpoint in the first process; check that all processes measure the same."""
        world = question.world
        if question.checkpoint is None and world.size == 1:
            return None
        identity = settings_of(self, question) | run_identity(question, precision) | {"refine": refine}
        world.agree(identity | {"max_memory": question.max_memory})
        if question.checkpoint is None or not world.is_first:
            return None
        path, every = question.checkpoint
        return EffectsFile(path, identity, len(question.edges) + refine, every)


def _checked(question: Question, name: str) -> PrecisionConfig:
    """Return the precision to screen in, after checking that it fits the model."""
    precision = question.precision or FULL_PRECISION
    if precision.screens:
        check_transformer(question.model, name)
        check_parts(question.model.cfg, precision)
        if precision.policy == "hybrid" and not precision.formats:
            raise ConfigError(
                f"method {name!r} cannot choose formats for policy='hybrid'; give formats, or another "
                "policy"
            )
    return precision


def _refined(question: Question) -> int:
    """Return how many edges are measured again in FP32: by default twice the circuit."""
    total = len(question.edges)
    if question.refine is not None:
        return question.refine
    if question.n_edges is not None:
        return min(total, 2 * question.n_edges)
    return round(REFINED_SHARE * total)


class _Run:
    """Measures all edges, from wherever an earlier run has left off.

    Args:
        engine: measures the effects.
        edges: all edges, in canonical order.
        start: how far the earlier run came.
        bar: shows progress.
        show: called whenever a resumed run could begin from what has been measured.
    """

    def __init__(
        self,
        engine: Engine,
        edges: Sequence[Edge],
        start: Measured,
        bar: Bar,
        show: Callable[[Measured], None] | None,
    ) -> None:
        self._engine, self._edges = engine, edges
        self._found = list(start.effects)
        self._before = start.evaluations
        self._bar, self._show = bar, show

    @property
    def evaluations(self) -> int:
        """Rows run so far, by earlier runs, too."""
        return self._before + self._engine.evaluations

    def all_of_them(self, refine: int) -> tuple[dict[Edge, float], set[Edge]]:
        """Return the effect of every edge, and which of them are screened only.

        Args:
            refine: how many edges of largest magnitude to measure again in FP32 after screening.
        """
        if not self._engine.screens:
            order = in_turn(self._engine, self._edges)
            return dict(zip(order, self._exact(order, 0), strict=True)), set()
        effects = dict(zip(self._edges, self._screened(), strict=True))
        ranked = sorted(self._edges, key=lambda edge: -abs(effects[edge]))
        self._engine.restore([])
        order = in_turn(self._engine, ranked[:refine])
        effects |= zip(order, self._exact(order, len(self._edges)), strict=True)
        return effects, set(ranked[refine:])

    def _exact(self, order: Sequence[Edge], offset: int) -> list[float]:
        """Measure edges in FP32; their effects begin at ``offset`` of what is found."""
        while (done := len(self._found) - offset) < len(order):
            self._add(alone(self._engine, order[done:]))
        return self._found[offset:]

    def _screened(self) -> list[float]:
        """Measure all edges in low precision, the destinations of one layer after those of another.

        Each layer begins with a fresh state, so that a resumed run finds the same to the last bit.
        """
        done = 0
        for _, members in groupby(self._edges, key=lambda edge: edge.dest.layer):
            layer, found = list(members), []
            done += len(layer)
            if done <= len(self._found):
                continue
            self._engine.restore([])
            while len(found) < len(layer):
                found += kept(self._engine, layer[len(found) :], exact=False)
            self._add(found)
        return self._found[: len(self._edges)]

    def _add(self, effects: Sequence[float]) -> None:
        self._found += effects
        self._bar(len(self._found))
        if self._show is not None:
            self._show(Measured(tuple(self._found), self.evaluations))
