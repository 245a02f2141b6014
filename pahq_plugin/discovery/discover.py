"""Find a circuit in one call, by any method.

1. Check all arguments before anything changes.
2. Borrow the model and run the method on the `Question`.
3. Give the model back and return a `Discovery`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pahq_plugin.choices import CHECKPOINT_EVERY, DEFAULT_THRESHOLD
from pahq_plugin.discovery.checks import (
    ablation_type,
    check_checkpoint,
    check_circuit_size,
    check_device,
    check_engine,
    check_model,
    check_refine,
    check_true_edges,
    check_world,
    refuse_unused,
)
from pahq_plugin.discovery.method import Method, settings_of
from pahq_plugin.discovery.methods import get_method
from pahq_plugin.discovery.paths import pruned
from pahq_plugin.engines.placement.plan import parse_bytes
from pahq_plugin.engines.question import Question, check_numbers
from pahq_plugin.host import AblationType, Edge, PatchableModel, PromptDataLoader
from pahq_plugin.host.graph import canonical_edges, check_order
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import check_one_shape, collect_batches
from pahq_plugin.metrics import DEFAULT_METRIC, Metric, resolve_metric
from pahq_plugin.models.checks import output_width
from pahq_plugin.precision.config import PrecisionConfig, check_precision
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Discovery, Searched, Stats
from pahq_plugin.system.memory import memory_shortage_named
from pahq_plugin.system.processes import current_world
from pahq_plugin.system.torch_state import seeded
from pahq_plugin.system.warn import warn


def discover(
    model: PatchableModel,
    loader: PromptDataLoader,
    *,
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
    steps: int | None = None,
    prune: bool = False,
    refine: int | None = None,
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
        method: one of `methods`, ``"module:attribute"``, or a `Method`, such as a `ScoringMethod` or a
            `HostAlgorithm` with other options.
        threshold: a searched edge is removed if and only if its effect is below this (> 0).
        metric: ``"kl_div"`` (default; ``"mse"`` for a model with one output), ``"mse"``,
            ``"logit_diff"``, or a callable ``(logits, clean_logits, batch) -> [prompt]``. Attribution
            differentiates ``"logit_diff"`` by default.
        ablation: what a patched edge carries: a host ``AblationType`` or its name.
        precision: number formats and policy in which ``"pahq"`` and ``"eactp"`` screen. With ``None``
            ``"pahq"`` estimates effects from gradients on the incremental engine, and ``"eactp"``
            measures in FP32; others screen in their own formats.
        engine: ``"incremental"`` (recomputes only what an edge can change), ``"host"`` (one host
            forward per edge), ``"auto"`` (the first if it supports the model, else the second), or an
            engine of another package, such as ``"onnx"``.
        batches: number of batches to use from the loader; ``None`` for all.
        order: all edges in the order in which to test them; ``None`` for the canonical order.
        true_edges: the official circuit, for host algorithms that need it.
        n_edges: circuit size. Methods that score edges keep the top ``n_edges`` by magnitude. Searches
            find the threshold, beginning with ``threshold``, and keep the ``n_edges`` largest effects.
            Edges that tie with the last one are kept, too. ``None``: a search keeps what ``threshold``
            keeps, other methods every edge with a nonzero score, and the host's ACDC every edge that
            none of its thresholds removes.
        steps: number of points between ablated and clean (>= 1) at which ``"eap-ig"`` and
            ``"eap-ig-activations"`` take gradients; ``None`` for 5.
        prune: drop edges that lie on no path from input to output from a circuit chosen by scores, as
            EAP-IG and MIB do. Their scores become 0, and ``settings["off_paths"]`` counts them.
        refine: with ``"eactp"`` and a ``precision``: how many edges, those of largest screened effect,
            are measured again in FP32. ``None`` takes twice ``n_edges``, or a tenth of the edges.
        checkpoint: file in which a search saves its progress. If the file exists, the search resumes
            from it, to bitwise the same decisions at equal settings and threads. A search for
            ``n_edges`` writes one file for each threshold: this one, then with ``.2``, ``.3`` added.
        progress: show a progress bar when a terminal is attached.
        seed: seeds the sample of edges that watches estimates or the guard band, and algorithms that
            draw random numbers. Python's and torch's global generators are seeded during the run and
            restored afterwards.
        checkpoint_every: seconds between two writes; an interrupted run writes once more.
        max_memory: bytes, or a string such as ``"8GB"``: the most that weights, caches and passes of a
            search may take on the device of the prompts, beyond what the process holds without the
            model's weights. What does not fit is read from disk (for a GPU, from host memory) when
            needed. ``None`` for no limit. Pass the model on the CPU (`open_model`) and the prompts on
            the device.

    Returns:
        The circuit, its decisions and prune scores. The model is left as it was.

    Raises:
        ConfigError: an unknown name, a value out of range, an argument the method does not use, or a
            model inside a `mixed_precision` block.
        ModelError: a model whose edges cannot be patched faithfully.
        PromptError: no prompts, or prompts that do not fit the model.
        GraphError: ``order`` is not a permutation of the model's edges.
        CheckpointError: the checkpoint is damaged, in use, or of another run.
        DistributedError: in a group of processes, a run that they cannot share, or a lost process.
        MetricError: an unknown metric, or one whose values are not finite or not of shape
            ``[prompt]``.
    """
    chosen = method if isinstance(method, Method) else get_method(method)
    check_numbers(threshold=threshold, batches=batches, seed=seed, steps=steps)
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
        "steps": steps is not None,
        "prune": prune,
        "refine": refine is not None,
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
    check_refine(refine, precision, len(model.edges))
    check_true_edges(chosen, model, true_edges)
    edges = canonical_edges(model) if order is None else check_order(model, order)
    with seeded(seed, alone=True), torch.inference_mode(False):  # a loader may draw its order
        everyone = collect_batches(model, loader, batches)
        if kind.mean_over_dataset:
            check_one_shape(collect_batches(model, loader, None))
    world = current_world()
    check_world(chosen, model, kind, world)
    check_device(model, everyone[0].clean.device, most)
    question = Question(
        model=model,
        loader=loader,
        prompts=[world.share_of(batch) for batch in everyone],
        everyone=everyone,
        ablation=kind,
        metric=DEFAULT_METRIC,
        edges=edges,
        order="canonical" if order is None else "given",
        threshold=threshold,
        batches=batches,
        n_edges=n_edges,
        steps=steps,
        refine=refine,
        true_edges=true_edges,
        precision=precision,
        engine=engine,
        world=world,
        max_memory=most,
        checkpoint=None if checkpoint is None else (Path(checkpoint), checkpoint_every),
        seed=seed,
        progress=progress and world.is_first,
    )
    stats, searched = Stats(), Searched.of(model)
    draws = chosen.draws or kind.mean_over_dataset  # the method, or the loader again
    with seeded(seed, alone=draws), borrowed(model), memory_shortage_named():
        if "metric" in chosen.uses:
            width = output_width(model, everyone[0].clean)
            wanted = chosen.default_metric if metric is None else metric
            question = replace(question, metric=resolve_metric(wanted, width))
        decisions, more = chosen.run(question, stats)
    if prune:
        decisions, off_paths = pruned(decisions)
        more |= {"off_paths": off_paths}
    if world.is_first and not chosen.draws:
        _warn_of_no_effect(decisions, kind)
    return Discovery(tuple(decisions), settings_of(chosen, question) | more, stats, model, searched)


def _warn_of_no_effect(decisions: Sequence[Decision], ablation: AblationType) -> None:
    """Warn, with a likely cause, if no patch changes the loss."""
    if not decisions or any(decision.effect for decision in decisions):
        return
    cause = "clean and corrupt prompts may be the same"
    if ablation is not AblationType.RESAMPLE:
        cause = "the ablation may put in what is there already"
    warn(f"no edge has any effect: {cause}, or the metric constant")
