"""``discover``: one call from a model and prompts to a circuit, by any method.

1. Check everything before anything changes.
2. Borrow the model and run the method: a sweep over the edges, or scores of all edges at once.
3. Give the model back and return a `Discovery`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pahq_plugin.arguments import (
    ablation_type,
    check_checkpoint,
    check_circuit_size,
    check_device,
    check_engine,
    check_model,
    check_true_edges,
    check_world,
)
from pahq_plugin.catalogue import Method, get_method, refuse_unused
from pahq_plugin.checkpoint import Checkpoint, held_by_first
from pahq_plugin.config import (
    PrecisionConfig,
    SearchConfig,
    check_precision,
    parse_bytes,
)
from pahq_plugin.distributed import World, current_world
from pahq_plugin.early import CHECKPOINT_EVERY, DEFAULT_THRESHOLD
from pahq_plugin.engine.cap import memory_shortage_named
from pahq_plugin.host import (
    AblationType,
    Edge,
    PatchableModel,
    PromptDataLoader,
    PromptPairBatch,
    PruneScores,
)
from pahq_plugin.host.algorithms import (
    SWEEPS,
    edge_attribution,
    host_function,
)
from pahq_plugin.host.attribution import integrated_gradients
from pahq_plugin.host.graph import canonical_edges, check_order
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.patching import (
    check_one_shape,
    collect_batches,
    loader_of,
    prepare,
)
from pahq_plugin.host.random_state import seeded
from pahq_plugin.measure import forward_seconds, held_to, measured
from pahq_plugin.metrics import Metric, check_answers, logit_diff, resolve_metric
from pahq_plugin.notices import warn
from pahq_plugin.placement.place import placed
from pahq_plugin.progress import say
from pahq_plugin.ranking import rank
from pahq_plugin.result import Decision, Discovery, Searched, Stats
from pahq_plugin.searching import (
    SearchTask,
    engine_precision,
    plan_search,
    run_identity,
    search,
)

EAP_IG_STEPS = 5


def discover(
    model: PatchableModel,
    loader: PromptDataLoader,
    method: str | Method = "pahq",
    threshold: float = DEFAULT_THRESHOLD,
    metric: str | Metric | None = None,
    ablation: str | AblationType = "resample",
    precision: PrecisionConfig | None = None,
    engine: str = "auto",
    batches: int | None = 1,
    order: Sequence[Edge] | None = None,
    true_edges: set[Edge] | None = None,
    n_edges: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
    checkpoint_every: float = CHECKPOINT_EVERY,
    max_memory: int | str | None = None,
) -> Discovery:
    """Find the circuit of a behaviour.

    Args:
        model: a factorized host model.
        loader: clean and corrupt prompts of that behaviour.
        method: one of `methods`, or a `Method` of your own: a host algorithm with other options.
        threshold: a searched edge is removed if and only if its effect is below this (> 0).
        metric: ``"kl_div"`` (default; ``"mse"`` for a model with one output), ``"mse"``,
            ``"logit_diff"``, or a callable ``(logits, clean_logits, batch) -> [prompt]``.
        ablation: what a patched edge carries: a host ``AblationType`` or its name.
        precision: formats and policy of ``"pahq"``; ``None`` chooses for the device.
        engine: ``"incremental"`` (recomputes only what an edge can change), ``"host"`` (one host
            forward per edge), ``"auto"``: the first where it applies, else the second; or one that
            another package adds, such as ``"onnx"``.
        batches: how many batches of the loader count; ``None`` for all.
        order: all edges in the order in which to test them; ``None`` for the canonical order.
        true_edges: the official circuit, for host algorithms that need it.
        n_edges: circuit size for methods that score edges: the top ``n_edges`` by magnitude and
            whatever ties with the last; ``None`` for every edge whose score is not 0, and with the
            host's ACDC for every edge that none of its thresholds removes.
        checkpoint: a file to which a search writes how far it is, and from which it goes on if the
            file is there: to the same decisions, bit for bit, at equal settings and threads.
        progress: show a progress bar when a terminal is attached.
        seed: seeds the watch on the guard band and algorithms that draw random numbers. Python's and
            torch's generators, which all threads share, are seeded meanwhile and put back.
        checkpoint_every: seconds between two writes; one more is made when the run is interrupted.
        max_memory: bytes, or a text such as ``"8GB"``, that weights, caches and passes of a search may
            take on the device of the prompts, above what the process holds without the model's
            weights. What does not fit comes from disk (on a GPU: from host memory) when it is needed.
            ``None`` for no limit. Give the model on the CPU (`open_model`), the prompts on the device.

    Returns:
        The circuit, its decisions and prune scores. The model is given back as it was.

    Raises:
        ConfigError: an unknown name, a value out of range, an argument the method cannot use, or a
            model that a `mixed_precision` block holds.
        ModelError: a model whose edges cannot be patched truthfully.
        PromptError: no prompts, or prompts that do not fit the model.
        GraphError: an ``order`` that is no permutation of the model's edges.
        CheckpointError: a checkpoint that is damaged, of another run, or in use.
        DistributedError: inside a group of processes, what these cannot share, or one that is gone.
        MetricError: an unknown metric, or one that returns another shape than ``[prompt]`` or
            values that are not finite.
    """
    chosen = method if isinstance(method, Method) else get_method(method)
    config = SearchConfig(threshold=threshold, batches=batches, seed=seed)
    kind = ablation_type(ablation)
    given = {
        "threshold": threshold != DEFAULT_THRESHOLD,
        "metric": metric is not None,
        "ablation": kind is not AblationType.RESAMPLE,
        "precision": precision is not None,
        "engine": engine != "auto",
        "order": order is not None,
        "true_edges": true_edges is not None,
        "n_edges": n_edges is not None,
        "checkpoint": checkpoint is not None,
        "max_memory": max_memory is not None,
    }
    refuse_unused(chosen, given)
    check_precision(precision)
    most = None if max_memory is None else parse_bytes(max_memory)
    check_checkpoint(checkpoint, checkpoint_every)
    check_engine(engine)
    check_model(chosen, model, precision)
    if n_edges is not None:
        check_circuit_size(n_edges, len(model.edges))
    check_true_edges(chosen, model, true_edges)
    edges = canonical_edges(model) if order is None else check_order(model, order)
    with seeded(seed, alone=True), torch.inference_mode(False):  # a loader may draw its order
        prompts = collect_batches(model, loader, batches)
        if kind.mean_over_dataset:
            check_one_shape(collect_batches(model, loader, None))
    world = current_world()
    check_world(chosen, model, kind, world)
    check_device(model, prompts[0].clean.device, most)
    request = _Request(
        method=chosen,
        model=model,
        loader=loader,
        prompts=prompts,
        config=config,
        ablation=kind,
        metric=metric,
        precision=precision,
        engine=engine,
        edges=edges,
        order="canonical" if order is None else "given",
        true_edges=true_edges,
        n_edges=n_edges,
        checkpoint=None if checkpoint is None else (Path(checkpoint), checkpoint_every),
        max_memory=most,
        progress=progress and world.is_first,
        world=world,
    )
    settings = {
        "method": chosen.name,
        "scored": chosen.kind != "search",
        "ablation": kind.name.lower(),
        "batches": batches,
        "seed": seed,
    }
    stats, searched = Stats(), Searched.of(model)
    draws = chosen.kind == "host" or kind.mean_over_dataset  # the host's algorithm, or the loader again
    with seeded(seed, alone=draws), borrowed(model), memory_shortage_named():
        find = _searched if chosen.kind == "search" else _scored
        decisions, more = find(request, settings, stats)
    measured_here = chosen.kind != "host" and world.is_first
    if measured_here and decisions and not any(decision.effect for decision in decisions):
        cause = "clean and corrupt prompts may be the same"
        if kind is not AblationType.RESAMPLE:
            cause = "the ablation may put in what is there already"
        warn(f"no edge has any effect: {cause}, or the metric constant")
    return Discovery(tuple(decisions), settings | more, stats, model, searched)


@dataclass(frozen=True)
class _Request:
    """The arguments of `discover`, checked; ``checkpoint`` is a file, and seconds between two writes."""

    method: Method
    model: PatchableModel
    loader: PromptDataLoader
    prompts: list[PromptPairBatch]
    config: SearchConfig
    ablation: AblationType
    metric: str | Metric | None
    precision: PrecisionConfig | None
    engine: str
    edges: list[Edge]
    order: str
    true_edges: set[Edge] | None
    n_edges: int | None
    checkpoint: tuple[Path, float] | None
    max_memory: int | None
    progress: bool
    world: World


Found = tuple[list[Decision], dict[str, Any]]
"""Decisions, and what is known of the run only afterwards."""


def _searched(request: _Request, settings: dict[str, Any], stats: Stats) -> Found:
    """A sweep within its budget of memory, gone on with where there is a checkpoint.

    Args:
        request: of a search.
        settings: what is known of the run.
        stats: added to.
    """
    model, world, prompts = request.model, request.world, request.prompts
    task = SearchTask(
        model, request.loader, [world.share_of(batch) for batch in prompts], request.ablation,
        resolve_metric(request.metric, _output_width(model, prompts[0].clean)), world, prompts,
    )  # fmt: skip
    engine, edges, config = request.engine, request.edges, request.config
    precision = request.method.precision or request.precision or engine_precision(engine, model)
    device = prompts[0].clean.device
    with ExitStack() as places, ExitStack() as stack:
        if request.max_memory is not None:
            plan, precision = plan_search(task, engine, precision, request.max_memory)
            say(str(plan), request.progress)
            placement = places.enter_context(placed(model, plan, device))
            stack.enter_context(held_to(plan, model, placement, device, stats))
            task = replace(task, placement=placement)
        file = None
        if request.checkpoint is not None or world.size > 1:
            identity = settings | run_identity(task, edges, precision, engine, config.threshold)
            world.agree(identity | {"max_memory": request.max_memory})
            if request.checkpoint is not None and world.is_first:
                path, every = request.checkpoint
                file = Checkpoint(path, identity, edges, config.threshold, every)
        start = stack.enter_context(held_by_first(file, edges, world))
        if start is not None and file is not None:
            done = f"{len(start.decisions):,} of {len(edges):,} edges are decided"
            say(f"going on from {file.path}: {done}", request.progress)
        with measured(stats, device):
            decisions, engine_used, used = search(
                task, engine, edges, config, precision, stats,
                request.progress, start, file and file.take,
            )  # fmt: skip
        stack.close()  # a plain forward takes memory and weights, too
        stats.forward_equivalents = stats.seconds / forward_seconds(model, prompts)
    return decisions, {
        "threshold": config.threshold,
        "metric": task.metric[0],
        "precision": None if used.is_exact else used.record(),
        "engine": engine_used,
        "order": request.order,
    }


def _scored(request: _Request, settings: dict[str, Any], stats: Stats) -> Found:
    """Scores of all edges, and the circuit of those that are largest; as `_searched`."""
    chosen, model, prompts, n_edges = request.method, request.model, request.prompts, request.n_edges
    if chosen.kind != "host":
        check_answers(prompts, _output_width(model, prompts[0].clean))
    with measured(stats, prompts[0].clean.device):
        scores = _scores(request)
    stats.forward_equivalents = stats.seconds / forward_seconds(model, prompts)
    more: dict[str, Any] = {"n_edges": n_edges}
    if chosen.options:
        more["options"] = dict(chosen.options)
    if n_edges is None and chosen.key in SWEEPS:
        n_edges = sum(int(values.isinf().sum()) for values in scores.values())
    return rank(scores, request.edges, n_edges), more


@torch.inference_mode()
def _output_width(model: PatchableModel, tokens: torch.Tensor) -> int:
    """Width of the last axis of the model's output."""
    return model.cfg.d_vocab_out if model.is_transformer else model(tokens[:1]).shape[-1]


@torch.inference_mode()
def _output_shape(model: PatchableModel, tokens: torch.Tensor) -> torch.Size:
    """Shape of the logits that count, ``[prompt, (pos,) vocab]``."""
    return model(tokens)[model.out_slice].shape


@torch.inference_mode(False)
@torch.enable_grad()
def _scores(request: _Request) -> PruneScores:
    """Scores of every edge by a method that does not search."""
    method, model = request.method, request.model
    drawn = loader_of(request.prompts, request.loader)
    if method.kind == "host":
        return host_function(method.key, method.options)(model, drawn, request.true_edges)
    is_integrated = method.kind == "integrated"
    if not is_integrated and _host_attributes(request):
        return edge_attribution(model, drawn, request.ablation)
    prepared = prepare(model, request.loader, request.prompts, request.ablation)
    if is_integrated:
        return integrated_gradients(model, prepared, EAP_IG_STEPS, _mean_logit_diff)
    at_clean = integrated_gradients(model, prepared, 1, _mean_logit_diff)
    return {name: len(prepared) * scores for name, scores in at_clean.items()}  # a sum, as the host's


def _host_attributes(request: _Request) -> bool:
    """Whether the host's own edge attribution does for an ablation and answers.

    It takes means over the batches that it differentiates, not the data set, and answers for each output
    position, or where that is one, a list on both sides.
    """
    if request.ablation.mean_over_dataset:
        return False
    outputs = _output_shape(request.model, request.prompts[0].clean)
    sides = [(batch.answers, batch.wrong_answers) for batch in request.prompts]
    return all(
        (isinstance(right, list) and isinstance(wrong, list) and len(outputs) == 2)
        or (_for_each(right, outputs) and _for_each(wrong, outputs))
        for right, wrong in sides
    )


def _for_each(answers: object, outputs: torch.Size) -> bool:
    """Whether there are answers for each output position."""
    return isinstance(answers, torch.Tensor) and answers.shape[:-1] == outputs[:-1]


def _mean_logit_diff(logits: torch.Tensor, batch: PromptPairBatch) -> torch.Tensor:
    """The loss that ``eap`` and ``eap-ig`` differentiate."""
    return logit_diff(logits, logits, batch).mean()
