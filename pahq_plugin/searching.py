"""A search from its settings: the engine made, the guard calibrated, the sweep run or gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pahq_plugin.backend import mixed_precision, model_device
from pahq_plugin.config import FULL_PRECISION, PrecisionConfig, SearchConfig, default_precision
from pahq_plugin.contents import function_digest
from pahq_plugin.distributed import ALONE, MEASURED, World
from pahq_plugin.engine import Engine
from pahq_plugin.engine.budget import budget_for
from pahq_plugin.engine.host import HostEngine
from pahq_plugin.engine.incremental import IncrementalEngine
from pahq_plugin.errors import ConfigError, DistributedError
from pahq_plugin.files import installed_version
from pahq_plugin.fingerprint import fingerprint
from pahq_plugin.guard import GuardBand
from pahq_plugin.host import AblationType, Edge, PatchableModel, PromptDataLoader, PromptPairBatch
from pahq_plugin.host.blocks import unsupported
from pahq_plugin.host.model import configuration_digest, model_digest
from pahq_plugin.host.patching import past_length, prepare, prompts_digest
from pahq_plugin.hybrid import calibrate, configured
from pahq_plugin.labels import edge_label
from pahq_plugin.metrics import Metric, row_losses
from pahq_plugin.notices import warn
from pahq_plugin.placement.place import Placement
from pahq_plugin.placement.plan import Plan, plan_memory
from pahq_plugin.plugins import engine_factory
from pahq_plugin.progress import progress_bar
from pahq_plugin.result import Decision, Stats
from pahq_plugin.search import Snapshot, Sweep, make_guard

ENGINES = ("auto", "incremental", "host")


@dataclass(frozen=True)
class SearchTask:
    """What a search measures.

    Attributes:
        model: borrowed.
        loader: for ablations that average over the data set.
        prompts: batches of this process.
        ablation: what a patched edge carries.
        metric: name and function.
        world: the processes that share the prompts.
        everyone: the batches whole.
        placement: where the model's weights are, and caches; ``None`` for in place.
    """

    model: PatchableModel
    loader: PromptDataLoader
    prompts: list[PromptPairBatch]
    ablation: AblationType
    metric: tuple[str, Metric]
    world: World = ALONE
    everyone: list[PromptPairBatch] = field(default_factory=list)
    placement: Placement | None = None


def search(
    task: SearchTask,
    engine_name: str,
    edges: Sequence[Edge],
    config: SearchConfig,
    precision: PrecisionConfig,
    stats: Stats,
    progress: bool,
    start: Snapshot | None = None,
    show: Callable[[Snapshot], None] | None = None,
) -> tuple[list[Decision], str, PrecisionConfig]:
    """One ACDC sweep, from ``start`` if there is one; adds its cost to ``stats``.

    Args:
        task: what to measure.
        engine_name: ``"auto"``, one of ours, or of another package.
        edges: in the order in which they are tested.
        config: threshold and seed.
        precision: to screen in.
        stats: added to.
        progress: show a bar.
        start: go on from there.
        show: told how far the search is.

    Returns:
        The decisions, and engine and precision used.
    """
    with ExitStack() as stack:
        engine = make_engine(task, engine_name, precision, stack)
        if precision.policy == "hybrid" and not precision.formats and engine.screens:
            precision = _calibrated(engine, task.model.cfg, edges, config, precision, stats, progress)
        bar = stack.enter_context(progress_bar("edges", len(edges), progress))
        if start is None:
            guard = make_guard(engine, edges, config.threshold, precision.guard, config.seed)
        else:
            guard = GuardBand.from_state(config.threshold, start.guard) if start.guard else None
        sweep = Sweep(
            engine, edges, config.threshold, guard, config.seed,
            progress=lambda done, kept: bar(done, f"{kept} kept"), start=start, show=show,
        )  # fmt: skip
        decisions = sweep.run()
        sweep.record(stats)
        return decisions, engine.name, precision


def run_identity(
    task: SearchTask, edges: Sequence[Edge], precision: PrecisionConfig, engine: str, threshold: float
) -> dict[str, Any]:
    """What makes two runs the same one, as JSON values; see `Checkpoint` for what is done with it."""
    everyone = task.everyone or task.prompts
    prompts = list(task.loader) if task.ablation.mean_over_dataset else everyone
    order = hashlib.blake2b("\n".join(map(edge_label, edges)).encode(), digest_size=16)
    return {
        "version": installed_version("pahq-plugin"),
        "threshold": threshold,
        "metric": task.metric[0],
        "precision": json.loads(json.dumps(precision.record())),
        "engine": engine,
        "order": order.hexdigest(),
        "model": model_digest(task.model),
        "prompts": prompts_digest(prompts),
        "configuration": configuration_digest(task.model),
        "prefix": _prefix_content(task.model),
        "metric_content": function_digest(task.metric[1]),
        "obstacle": None if task.placement else _objection(task.model, task.prompts),
        MEASURED: _corrupt_loss(task, everyone[0]),
    }


def _prefix_content(model: PatchableModel) -> list[int]:
    """Fingerprints of the keys and values of common prefixes."""
    caches = [cache for _, cache in sorted((model.kv_caches or {}).items())]
    pasts = [
        x for cache in caches for entry in cache.entries for x in (entry.past_keys, entry.past_values)
    ]
    return [fingerprint(x) for x in pasts]


@torch.inference_mode()
def _corrupt_loss(task: SearchTask, batch: PromptPairBatch) -> float:
    """Loss of the first corrupt prompt against its clean one, in every process alike.

    It tells apart what no digest sees, such as globals that a metric reads. Caches of a common prefix
    are those of a whole batch.
    """
    if task.model.kv_caches is None:
        batch = World(0, len(batch.clean)).share_of(batch)
    clean, corrupt = (task.model(x)[task.model.out_slice] for x in (batch.clean, batch.corrupt))
    return float(row_losses(*task.metric, corrupt[None], clean, batch))


def _calibrated(
    engine: Engine,
    cfg: Any,
    edges: Sequence[Edge],
    config: SearchConfig,
    precision: PrecisionConfig,
    stats: Stats,
    progress: bool,
) -> PrecisionConfig:
    """The formats that the hybrid policy chooses; adds the parts' sensitivities to ``stats``."""
    with progress_bar("parts", len(configured(precision, cfg)), progress) as bar:
        chosen, assignment = calibrate(
            engine, edges, precision, cfg, config.threshold, config.seed,
            progress=lambda done, _: bar(done, "measured"),
        )  # fmt: skip
    stats.sensitivity = assignment.errors
    return chosen


def make_engine(task: SearchTask, name: str, precision: PrecisionConfig, stack: ExitStack) -> Engine:
    """The engine of that name; ``"auto"`` takes the incremental one where it applies.

    Contexts that the engine needs for as long as it lives are entered on ``stack``.
    """
    if name not in ENGINES:
        if task.world.size > 1:
            raise DistributedError(f"engine={name!r} works in one process; use engine='incremental'")
        screening = precision if precision.screens else FULL_PRECISION
        made = engine_factory(name)(
            task, screening, lambda: make_engine(task, "auto", FULL_PRECISION, stack)
        )
        return stack.enter_context(closing(made)) if hasattr(made, "close") else made  # type: ignore[type-var]
    model, loader, prompts = task.model, task.loader, task.prompts
    # A placement means that `plan_search` has asked already; it brings weights in by hooks of its own.
    objection = None if task.placement else _objection(model, prompts)
    if name == "incremental" and objection:
        warn(f"engine='incremental' cannot do {objection}; using engine='host'")
    screening = precision if precision.screens else None
    if name != "host" and not objection:
        return IncrementalEngine(
            model, loader, prompts, task.ablation, task.metric, screening,
            world=task.world, everyone=task.everyone, placement=task.placement,
        )  # fmt: skip
    prepared = prepare(model, loader, prompts, task.ablation)  # before the model is lent
    if precision.guard != 0 and precision.masters == "auto":
        precision = replace(precision, masters="device")  # they are needed for every exact decision
    backend = stack.enter_context(mixed_precision(model, precision)) if screening else None
    sizes = [len(batch.clean) for batch in task.everyone] or None
    return HostEngine(model, prepared, task.metric, backend, task.world, sizes)


def _objection(model: PatchableModel, prompts: Sequence[PromptPairBatch]) -> str | None:
    """Why the incremental engine cannot be used on these; ``None`` if it can."""
    if not model.is_transformer:
        return "the model is no transformer"
    lengths = sorted({batch.clean.shape[1] for batch in prompts})
    if len(lengths) > 1:
        return f"batches of different lengths ({lengths})"
    return unsupported(model, past_length(model) + lengths[0])


def plan_search(
    task: SearchTask, engine: str, precision: PrecisionConfig, max_memory: int
) -> tuple[Plan, PrecisionConfig]:
    """Divide ``max_memory`` between weights, caches and passes, in every process alike.

    Returns:
        The plan, and what to screen in: nothing, where low copies of the weights find no room.

    Raises:
        ConfigError: an engine or a model that cannot keep a budget, or a budget that is too small.
    """
    if engine not in ("auto", "incremental"):
        raise ConfigError(f"engine={engine!r} cannot keep max_memory; use engine='incremental'")
    objection = _objection(task.model, task.prompts)
    if objection:
        raise ConfigError(f"max_memory needs engine='incremental', which cannot do {objection}")
    device = task.prompts[0].clean.device
    most = World(task.world.size - 1, task.world.size)  # no process has more prompts than the last
    plan = plan_memory(
        task.model, [most.share_of(batch) for batch in task.everyone or task.prompts], max_memory,
        precision if precision.screens else None,
        budget_for(device).together, task.ablation.mean_over_dataset,
    )  # fmt: skip
    if precision.screens and not plan.screens:
        if precision.guard == 0:
            raise ConfigError(
                f"max_memory={max_memory} leaves no room for the low copies of the weights, without "
                "which a search without guard band takes other decisions; give it more, or use "
                "method='acdc'"
            )
        warn("low copies of the weights do not fit max_memory: measuring in full precision")
        precision = FULL_PRECISION
    return plan, precision


def engine_precision(engine: str, model: PatchableModel) -> PrecisionConfig:
    """What an engine screens with on the model's device where nothing was asked for."""
    device = model_device(model)
    if engine in ENGINES:
        return default_precision(device)
    return engine_factory(engine).default_precision(device)
