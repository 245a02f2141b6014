"""The host's own algorithms by key, and its registry for new ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from auto_circuit.prune_algos import prune_algos

from pahq_plugin.errors import ConfigError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.types import Edge, PatchableModel, PromptDataLoader, PruneScores

NEEDS_TRUE_EDGES = prune_algos.GROUND_TRUTH_PRUNE_ALGO.key
"""Key of the only host algorithm that requires the official circuit."""

SWEEPS = frozenset({prune_algos.ACDC_PRUNE_ALGO.key, prune_algos.MSE_ACDC_PRUNE_ALGO.key})
"""Host algorithms that sweep thresholds; an edge that no threshold removes has an infinite score."""

PruneFunction = Callable[[PatchableModel, PromptDataLoader, set[Edge] | None], PruneScores]


def host_keys() -> list[str]:
    """Return the keys of all algorithms registered in the host, ours included once registered."""
    return list(prune_algos.PRUNE_ALGO_DICT)


def host_function(key: str, options: Mapping[str, Any] | None = None) -> PruneFunction:
    """Return the host's function for ``key``, with some of its arguments set.

    Training curves are not drawn: each would open a browser window.

    Raises:
        ConfigError: the algorithm lacks an option; the message lists those it has.
    """
    function: Any = prune_algos.PRUNE_ALGO_DICT[key].func
    names = list(inspect.signature(function).parameters)[3:]
    unknown = [name for name in options or () if name not in names]
    if unknown:
        raise ConfigError(f"{key!r} has no option {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    quiet = {"show_train_graph": False} if "show_train_graph" in names else {}
    return _reproducible(partial(function, **(quiet | dict(options or {}))), key in SWEEPS)


def host_options(key: str) -> dict[str, Any]:
    """Return the options of a host algorithm that have a default, with their defaults."""
    parameters = inspect.signature(prune_algos.PRUNE_ALGO_DICT[key].func).parameters
    return {name: p.default for name, p in list(parameters.items())[3:] if p.default is not p.empty}


def sized_as_the_truth(key: str, options: Mapping[str, Any]) -> bool:
    """Return whether a host algorithm searches for a circuit as large as the official one."""
    return "true_size" in (host_options(key) | dict(options)).get("circuit_sizes", ())


def _reproducible(function: PruneFunction, is_sweep: bool) -> PruneFunction:
    """Run ``function`` on sorted destinations, and with ``torch.optim.adam`` defined.

    The host keeps its destinations in a set, and draws random numbers in its order. A sweep sorts
    ``model.edges``, a set, too, stably by layer only; it gets them in canonical order. The host trains
    with ``torch.optim.adam.Adam``, a name that PyTorch 2.13 lacks.
    """

    def ordered(
        model: PatchableModel, loader: PromptDataLoader, true_edges: set[Edge] | None
    ) -> PruneScores:
        edges, wrappers, masks = model.edges, model.dest_wrappers, model.patch_masks
        hidden = not hasattr(torch.optim, "adam")
        if is_sweep:
            model.edges = canonical_edges(model)  # type: ignore[assignment]
        model.dest_wrappers = sorted(wrappers, key=lambda w: w.module_name)  # type: ignore[assignment]
        model.patch_masks = dict(sorted(masks.items()))
        if hidden:
            torch.optim.adam = import_module("torch.optim.adam")  # type: ignore[attr-defined]
        try:
            return function(model, loader, true_edges)
        finally:
            model.edges, model.dest_wrappers, model.patch_masks = edges, wrappers, masks
            if hidden:
                del torch.optim.adam  # type: ignore[attr-defined]

    return ordered


def enter_algorithm(key: str, name: str, func: PruneFunction) -> None:
    """Add an algorithm to the host's ``PRUNE_ALGOS`` and ``PRUNE_ALGO_DICT``, if it is not there."""
    if key in prune_algos.PRUNE_ALGO_DICT:
        return
    algorithm = prune_algos.PruneAlgo(key=key, name=name, func=func, _short_name=name)
    prune_algos.PRUNE_ALGOS.append(algorithm)
    prune_algos.PRUNE_ALGO_DICT[key] = algorithm
