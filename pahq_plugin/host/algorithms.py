"""The host's own algorithms by key, and the table that new ones are entered in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from auto_circuit.prune_algos import prune_algos
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

from pahq_plugin.errors import ConfigError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.types import AblationType, Edge, PatchableModel, PromptDataLoader, PruneScores

NEEDS_TRUE_EDGES = prune_algos.GROUND_TRUTH_PRUNE_ALGO.key
"""The one host algorithm that cannot do without the official circuit."""

SWEEPS = frozenset({prune_algos.ACDC_PRUNE_ALGO.key, prune_algos.MSE_ACDC_PRUNE_ALGO.key})
"""Host algorithms that sweep thresholds; an edge that none of them removes has an infinite score."""

PruneFunction = Callable[[PatchableModel, PromptDataLoader, set[Edge] | None], PruneScores]


def host_keys() -> list[str]:
    """Keys of every algorithm that the host knows at present, ours included once registered."""
    return list(prune_algos.PRUNE_ALGO_DICT)


def host_function(key: str, options: Mapping[str, Any] | None = None) -> PruneFunction:
    """The host's function for ``key``, with arguments of its own changed.

    Training curves are not drawn: that would open a browser window for each.

    Raises:
        ConfigError: an option that the algorithm does not have; lists those it has.
    """
    function: Any = prune_algos.PRUNE_ALGO_DICT[key].func
    names = list(inspect.signature(function).parameters)[3:]
    unknown = [name for name in options or () if name not in names]
    if unknown:
        raise ConfigError(f"{key!r} has no option {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    quiet = {"show_train_graph": False} if "show_train_graph" in names else {}
    function = partial(function, **(quiet | dict(options or {})))
    return _reproducible(_in_canonical_order(function) if key in SWEEPS else function)


def host_options(key: str) -> dict[str, Any]:
    """The options of a host algorithm that have a value by default, with that value."""
    parameters = inspect.signature(prune_algos.PRUNE_ALGO_DICT[key].func).parameters
    return {name: p.default for name, p in list(parameters.items())[3:] if p.default is not p.empty}


def sized_as_the_truth(key: str, options: Mapping[str, Any]) -> bool:
    """Whether a host algorithm looks for a circuit of the official one's size."""
    return "true_size" in (host_options(key) | dict(options)).get("circuit_sizes", ())


def _in_canonical_order(function: PruneFunction) -> PruneFunction:
    """The host's loop sorts ``model.edges`` stably by layer alone; that is a set, whose order
    changes from process to process."""

    def ordered(
        model: PatchableModel, loader: PromptDataLoader, true_edges: set[Edge] | None
    ) -> PruneScores:
        edges = model.edges
        model.edges = canonical_edges(model)  # type: ignore[assignment]
        try:
            return function(model, loader, true_edges)
        finally:
            model.edges = edges

    return ordered


def _reproducible(function: PruneFunction) -> PruneFunction:
    """The host keeps its destinations in a set, too, and draws random numbers in its order.

    Besides, it trains with ``torch.optim.adam.Adam``, a name that PyTorch 2.13 does not have.
    """

    def ordered(
        model: PatchableModel, loader: PromptDataLoader, true_edges: set[Edge] | None
    ) -> PruneScores:
        wrappers, masks = model.dest_wrappers, model.patch_masks
        hidden = not hasattr(torch.optim, "adam")
        model.dest_wrappers = sorted(wrappers, key=lambda w: w.module_name)  # type: ignore[assignment]
        model.patch_masks = dict(sorted(masks.items()))
        if hidden:
            torch.optim.adam = import_module("torch.optim.adam")  # type: ignore[attr-defined]
        try:
            return function(model, loader, true_edges)
        finally:
            model.dest_wrappers, model.patch_masks = wrappers, masks
            if hidden:
                del torch.optim.adam  # type: ignore[attr-defined]

    return ordered


def enter_algorithm(key: str, name: str, func: PruneFunction) -> None:
    """Add an algorithm to the host's ``PRUNE_ALGOS`` and ``PRUNE_ALGO_DICT``; once is enough."""
    if key in prune_algos.PRUNE_ALGO_DICT:
        return
    algorithm = prune_algos.PruneAlgo(key=key, name=name, func=func, _short_name=name)
    prune_algos.PRUNE_ALGOS.append(algorithm)
    prune_algos.PRUNE_ALGO_DICT[key] = algorithm


def edge_attribution(
    model: PatchableModel, loader: PromptDataLoader, ablation: AblationType
) -> PruneScores:
    """The host's "Edge Answer Logit Diff Gradient At Clean", of any ablation but data set means."""
    return mask_gradient_prune_scores(
        model,
        loader,
        None,
        grad_function="logit",
        answer_function="avg_diff",
        mask_val=0.0,
        ablation_type=ablation,
        clean_corrupt=None if ablation is AblationType.ZERO else "corrupt",
    )
