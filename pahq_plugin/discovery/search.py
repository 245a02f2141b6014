"""Run a search: make the engine, calibrate the guard band, run or resume the sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from pahq_plugin.discovery.acdc import Progress, Snapshot, Sweep
from pahq_plugin.discovery.cascade import Cascade
from pahq_plugin.discovery.checkpoint import Checkpoint, held_by_first
from pahq_plugin.discovery.cost import forward_seconds, held_to, measured
from pahq_plugin.discovery.guard import GuardBand, make_guard
from pahq_plugin.discovery.hybrid import calibrate, configured
from pahq_plugin.discovery.identity import run_identity
from pahq_plugin.discovery.method import Found, Method, settings_of
from pahq_plugin.discovery.screening import Screening
from pahq_plugin.discovery.sized import sized
from pahq_plugin.engines.choose import can_estimate, engine_precision, make_engine, plan_search
from pahq_plugin.engines.placement.place import placed
from pahq_plugin.engines.protocol import Engine, Estimator
from pahq_plugin.engines.question import Question
from pahq_plugin.precision.config import FULL_PRECISION, PrecisionConfig
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Stats
from pahq_plugin.system.progress import progress_bar, say
from pahq_plugin.system.warn import warn

SEARCHING = frozenset(
    {
        "threshold", "n_edges", "metric", "ablation", "engine", "order", "batches", "checkpoint",
        "max_memory",
    }
)  # fmt: skip
"""Arguments of `discover` that every search can use."""


@dataclass(frozen=True)
class Search(Method):
    """ACDC: test one edge after another against a threshold.

    Attributes:
        precision: the precision it always screens in; ``None`` if the user or the engine chooses.
        estimates: whether it estimates effects first, unless the user chooses a precision to screen in.
    """

    precision: PrecisionConfig | None = None
    estimates: bool = False

    searches = True
    draws = False

    @property
    def uses(self) -> frozenset[str]:  # type: ignore[override]
        """See `Method.uses`."""
        return SEARCHING | (frozenset() if self.precision else {"precision"})

    @property
    def needs_heads(self) -> bool:  # type: ignore[override]
        """See `Method.needs_heads`: it chooses the precision of heads."""
        return self.precision is not FULL_PRECISION

    @property
    def fixed_precision(self) -> PrecisionConfig | None:
        """See `Method.fixed_precision`."""
        return self.precision

    def run(self, question: Question, stats: Stats) -> Found:
        """Search at the threshold, or at a few of them for a circuit of a wanted size (see `sized`)."""
        if question.n_edges is None:
            return self._at_threshold(question, stats)
        settings: dict[float, dict[str, Any]] = {}

        def search(threshold: float) -> list[Decision]:
            count = len(settings) + 1
            say(f"search {count}, at threshold {threshold:.3g}", question.progress)
            own, checkpoint = Stats(), question.checkpoint
            if checkpoint is not None and count > 1:
                path, every = checkpoint
                checkpoint = path.with_name(f"{path.name}.{count}"), every
            asked = replace(question, threshold=threshold, checkpoint=checkpoint)
            decisions, settings[threshold] = self._at_threshold(asked, own)
            stats.add(own)
            return decisions

        found = sized(search, question.n_edges, question.threshold)
        wanted = {"threshold": found.threshold, "n_edges": question.n_edges, "searched": found.searched}
        return found.decisions, settings[found.chosen] | wanted

    def _at_threshold(self, question: Question, stats: Stats) -> Found:
        """Search within the memory budget, resuming from a checkpoint if there is one."""
        model, engine = question.model, question.engine
        everyone = question.everyone or question.prompts
        estimates = self.estimates and question.precision is None and can_estimate(question)
        precision = self.precision or question.precision or engine_precision(engine, model)
        precision = FULL_PRECISION if estimates else precision
        device = everyone[0].clean.device
        with ExitStack() as places, ExitStack() as stack:
            if question.max_memory is not None:
                plan, precision = plan_search(question, precision)
                say(str(plan), question.progress)
                placement = places.enter_context(placed(model, plan, device))
                stack.enter_context(held_to(plan, model, placement, device, stats))
                question = replace(question, placement=placement)
            file = self._checkpoint(question, precision)
            start = stack.enter_context(held_by_first(file, question.edges, question.world))
            if start is not None and file is not None:
                done = f"{len(start.decisions):,} of {len(question.edges):,} edges are decided"
                say(f"going on from {file.path}: {done}", question.progress)
            with measured(stats, device):
                decisions, used, engine_used = swept(
                    question, precision, stats, estimates=estimates, start=start,
                    show=file and file.take,
                )  # fmt: skip
            stack.close()  # a plain forward takes memory and weights, too
            stats.forward_equivalents = stats.seconds / forward_seconds(model, everyone)
        return decisions, {
            "threshold": question.threshold,
            "metric": question.metric[0],
            "precision": None if used.is_exact else used.record(),
            "engine": engine_used,
            "order": question.order,
        }

    def _checkpoint(self, question: Question, precision: PrecisionConfig) -> Checkpoint | None:
        """Return the checkpoint in the first process; check that all processes search the same."""
        world = question.world
        if question.checkpoint is None and world.size == 1:
            return None
        identity = settings_of(self, question) | run_identity(question, precision)
        world.agree(identity | {"max_memory": question.max_memory})
        if question.checkpoint is None or not world.is_first:
            return None
        path, every = question.checkpoint
        return Checkpoint(path, identity, question.edges, question.threshold, every)


def swept(
    question: Question,
    precision: PrecisionConfig,
    stats: Stats,
    *,
    estimates: bool = False,
    start: Snapshot | None = None,
    show: Callable[[Snapshot], None] | None = None,
) -> tuple[list[Decision], PrecisionConfig, str]:
    """Run one ACDC sweep.

    Args:
        question: what to search.
        precision: the precision to screen in.
        stats: the cost is added here.
        estimates: whether to estimate effects first, which needs an `Estimator`.
        start: snapshot to resume from.
        show: called with every snapshot.

    Returns:
        The decisions, the precision and the name of the engine used.
    """
    edges, threshold = question.edges, question.threshold
    with ExitStack() as stack:
        engine = make_engine(question, precision, stack)
        if precision.policy == "hybrid" and not precision.formats and engine.screens:
            precision = _calibrated(engine, question, precision, stats)
        bar = stack.enter_context(progress_bar("edges", len(edges), question.progress))
        report: Progress = lambda done, kept: bar(done, f"{kept} kept")  # noqa: E731
        if estimates:
            sweep = _estimated_sweep(cast(Estimator, engine), question, report, start, show)
        else:
            screening = _screening(engine, question, precision, start)
            sweep = Sweep(engine, edges, threshold, screening, progress=report, start=start, show=show)
        decisions = sweep.run()
        sweep.record(stats)
        return decisions, precision, engine.name


def _estimated_sweep(
    engine: Estimator,
    question: Question,
    report: Progress,
    start: Snapshot | None,
    show: Callable[[Snapshot], None] | None,
) -> Sweep:
    """Make a sweep with estimates; without them, and with a warning, if nothing can be estimated."""
    edges, threshold = question.edges, question.threshold
    objection = engine.objection_to_slopes()
    if objection:
        warn(f"every edge is measured alone, because estimates do not support {objection}")
        return Sweep(engine, edges, threshold, progress=report, start=start, show=show)
    return Cascade(engine, edges, threshold, seed=question.seed, progress=report, start=start, show=show)


def _screening(
    engine: Engine, question: Question, precision: PrecisionConfig, start: Snapshot | None
) -> Screening | None:
    """Make the screening; ``None`` if the engine measures every effect in FP32."""
    edges, threshold, seed = question.edges, question.threshold, question.seed
    if start is not None:
        guard = GuardBand.from_state(threshold, start.guard) if start.guard else None
    else:
        guard = make_guard(engine, edges, threshold, precision.guard, seed)
    return Screening(engine, edges, threshold, guard, seed=seed) if engine.screens else None


def _calibrated(
    engine: Engine, question: Question, precision: PrecisionConfig, stats: Stats
) -> PrecisionConfig:
    """Return the formats chosen by the hybrid policy; add the sensitivities to ``stats``."""
    cfg = question.model.cfg
    with progress_bar("parts", len(configured(precision, cfg)), question.progress) as bar:
        chosen, assignment = calibrate(
            engine, question.edges, precision, cfg, question.threshold, question.seed,
            progress=lambda done, _: bar(done, "measured"),
        )  # fmt: skip
    stats.sensitivity = assignment.errors
    return chosen
