"""Our methods as host algorithms: ``register()`` enters them in the host's tables.

A registered algorithm that searches sweeps several thresholds, as the host's ACDC does. An edge's prune
score is the smallest threshold that removes it, or ten times the largest if no threshold does.
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
    """Enter our methods in the host's ``PRUNE_ALGOS`` and ``PRUNE_ALGO_DICT``; idempotent."""
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
    """Compute prune scores from a sweep over thresholds, with one search on the first batch for each.

    Args:
        model: the host model.
        dataloader: its prompts.
        official_edges: not used; part of the host's signature.
        method: a method that searches.
        thresholds: thresholds to sweep, each above 0.

    Returns:
        Host prune scores: for each edge the smallest threshold that removes it.

    Raises:
        ConfigError: ``thresholds`` is empty.
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
    """Compute prune scores with a method that scores all edges at once, over the whole loader."""
    return discover(model, dataloader, method=method, batches=None).prune_scores
