"""Checks of the arguments of `discover`; each error says what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from pahq_plugin.choices import ENGINES
from pahq_plugin.discovery.method import Method
from pahq_plugin.engines.protocol import engine_names
from pahq_plugin.errors import ConfigError, DistributedError, GraphError
from pahq_plugin.host import AblationType, Edge, PatchableModel
from pahq_plugin.host.graph import edge_label_of
from pahq_plugin.models.checks import check_patchable, check_transformer, model_device
from pahq_plugin.precision.backend import check_not_lent
from pahq_plugin.precision.config import FULL_PRECISION, PrecisionConfig
from pahq_plugin.precision.policy import check_parts
from pahq_plugin.system.plugins import is_reference
from pahq_plugin.system.processes import World


def ablation_type(ablation: str | AblationType) -> AblationType:
    """Return the host's ablation type of that name, which may be in upper or lower case.

    Raises:
        ConfigError: there is no such type; the message lists the known ones.
    """
    if isinstance(ablation, AblationType):
        return ablation
    known = {kind.name.lower(): kind for kind in AblationType}
    if not isinstance(ablation, str) or ablation.lower() not in known:
        raise ConfigError(f"unknown ablation {ablation!r}; known: {', '.join(known)}")
    return known[ablation.lower()]


def check_checkpoint(checkpoint: object, every: object) -> None:
    """Refuse a checkpoint that is not the name of a file, or an interval that is not in seconds.

    Raises:
        ConfigError: either of these.
    """
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise ConfigError(f"checkpoint is a {type(checkpoint).__name__}; expected the name of a file")
    is_number = isinstance(every, (int, float)) and not isinstance(every, bool)
    if not is_number or not every >= 0:  # type: ignore[operator]
        raise ConfigError(f"checkpoint_every={every!r} must be a number of seconds, at least 0")


def check_engine(engine: str) -> None:
    """Refuse an engine that neither we nor another package provide, with a `ConfigError`."""
    if engine not in ENGINES and engine not in engine_names() and not is_reference(engine):
        known = ", ".join([*ENGINES, *engine_names()])
        raise ConfigError(f"unknown engine {engine!r}; known: {known}")


def check_model(method: Method, model: PatchableModel, precision: PrecisionConfig | None) -> None:
    """Refuse a model that ``method`` cannot search in ``precision``.

    Raises:
        ConfigError: a `mixed_precision` block holds the model, or ``precision`` names a part that the
            model lacks.
        ModelError: its edges cannot be patched faithfully, or the method needs a transformer.
    """
    check_not_lent(check_patchable(model))
    if method.needs_heads:
        check_transformer(model, method.name)
        check_parts(model.cfg, precision or FULL_PRECISION)


def check_circuit_size(n_edges: object, available: int) -> None:
    """Refuse a circuit size that is not an integer between 0 and ``available``, with a `ConfigError`."""
    if type(n_edges) is not int or not 0 <= n_edges <= available:
        raise ConfigError(f"n_edges={n_edges!r} must be an integer between 0 and {available}")


def check_refine(refine: object, precision: PrecisionConfig | None, available: int) -> None:
    """Refuse a number of edges to measure again, with a `ConfigError`, if it is not an integer between 0
    and ``available`` or nothing is screened."""
    if refine is None:
        return
    if precision is None:
        raise ConfigError("refine needs precision: without one every edge is measured in FP32")
    if type(refine) is not int or not 0 <= refine <= available:
        raise ConfigError(f"refine={refine!r} must be an integer between 0 and {available}")


def check_device(model: PatchableModel, device: torch.device, max_memory: int | None) -> None:
    """Refuse a model and prompts on different devices.

    Raises:
        ConfigError: the devices differ, unless the model is on the CPU and ``max_memory`` is given.
    """
    found = model_device(model)
    if found != device and (max_memory is None or found.type != "cpu"):
        raise ConfigError(
            f"the model is on {found}, the prompts are on {device}; move the model there, or with the "
            "model on the CPU give max_memory"
        )


def check_world(method: Method, model: PatchableModel, ablation: AblationType, world: World) -> None:
    """Refuse what several processes cannot share.

    Raises:
        DistributedError: the method, the model or the ablation works in one process only.
    """
    if world.size == 1:
        return
    if not (method.searches or method.shares_prompts):
        raise DistributedError(
            f"method {method.name!r} runs in one process; only searches and eactp can share prompts"
        )
    if model.kv_caches is not None:
        raise DistributedError(
            "the model has KV caches of whole batches; several processes share batches"
        )
    if ablation not in (AblationType.RESAMPLE, AblationType.ZERO):  # each would average its own share
        raise DistributedError(
            f"ablation {ablation.name.lower()!r} averages over prompts, which several processes share; "
            "run it in one process, or use resample or zero"
        )


def check_true_edges(method: Method, model: PatchableModel, true_edges: set[Edge] | None) -> None:
    """Refuse an official circuit that is missing or does not fit the model.

    Raises:
        ConfigError: the method needs the official circuit and none is given.
        GraphError: the official circuit holds an edge that the model lacks.
    """
    if true_edges is None:
        method.check_without_true_edges()
        return
    if not isinstance(true_edges, Iterable):
        raise GraphError(f"true_edges is a {type(true_edges).__name__}; expected a set of edges")
    foreign = [edge for edge in true_edges if edge not in model.edges]
    if foreign:
        raise GraphError(
            f"true_edges holds {edge_label_of(foreign[0])}, which is not an edge of this model"
        )


def refuse_unused(method: Method, given: dict[str, bool]) -> None:
    """Refuse arguments that ``method`` does not use, with a `ConfigError`."""
    for argument, is_given in given.items():
        if is_given and argument not in method.uses:
            usable = ", ".join(sorted(method.uses))
            raise ConfigError(f"method {method.name!r} cannot use {argument}; it uses {usable}")
