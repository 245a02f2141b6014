"""Our methods as algorithms of the host: ``register()`` enters them in its tables.

A registered algorithm that searches sweeps several thresholds, as the host's ACDC does. The score
of an edge is the smallest threshold that removes it, and ten times the largest for an edge that no
threshold removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pahq_plugin.discovery.discover import discover
from pahq_plugin.discovery.methods import OWN_METHODS
from pahq_plugin.discovery.scores import UNREMOVED
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge, PatchableModel, PromptDataLoader, PruneScores
from pahq_plugin.host.algorithms import enter_algorithm

THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2)
"""The powers of ten that the host's ACDC sweeps by default."""


def register() -> None:
    """Enter our methods in the host's ``PRUNE_ALGOS`` and ``PRUNE_ALGO_DICT``.

    Calling it again changes nothing.
    """
    for method in OWN_METHODS.values():
        run = threshold_scores if method.searches else attribution_scores
        enter_algorithm(method.name, method.title, partial(run, method=method.name))


def threshold_scores(
    model: PatchableModel,
    dataloader: PromptDataLoader,
    official_edges: set[Edge] | None = None,
    method: str = "pahq",
    thresholds: Sequence[float] = THRESHOLDS,
) -> PruneScores:
    """Prune scores from a sweep over thresholds, each a search of its own on the first batch.

    Args:
        model: the host model.
        dataloader: its prompts.
        official_edges: not used; part of the host's signature.
        method: a method that searches.
        thresholds: thresholds to sweep, each above 0.

    Returns:
        Host prune scores: per edge the smallest threshold that removes it.

    Raises:
        ConfigError: no threshold given.
    """
    if not thresholds:
        raise ConfigError("thresholds is empty; give at least one, for example (1e-3,)")
    scores = model.new_prune_scores(init_val=UNREMOVED * max(thresholds))
    for threshold in sorted(thresholds, reverse=True):
        result = discover(model, dataloader, method=method, threshold=threshold)
        for decision in result.decisions:
            if not decision.kept:
                edge = decision.edge
                scores[edge.dest.module_name][edge.patch_idx] = threshold
    return scores


def attribution_scores(
    model: PatchableModel,
    dataloader: PromptDataLoader,
    official_edges: set[Edge] | None = None,
    method: str = "eap",
) -> PruneScores:
    """Prune scores of a method that scores all edges at once, over the whole loader."""
    return discover(model, dataloader, method=method, batches=None).prune_scores
