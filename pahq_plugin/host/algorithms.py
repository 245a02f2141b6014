"""The host's own algorithms by key, and the table that new ones are entered in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from auto_circuit.prune_algos import prune_algos
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

from pahq_plugin.host.types import (
    AblationType,
    Edge,
    PatchableModel,
    PromptDataLoader,
    PruneScores,
)

NEEDS_TRUE_EDGES = prune_algos.GROUND_TRUTH_PRUNE_ALGO.key
"""The one host algorithm that cannot do without the official circuit."""

PruneFunction = Callable[[PatchableModel, PromptDataLoader, set[Edge] | None], PruneScores]


def host_keys() -> list[str]:
    """Keys of every algorithm that the host knows at present, ours included once registered."""
    return list(prune_algos.PRUNE_ALGO_DICT)


def host_function(key: str) -> PruneFunction:
    """The host's function for ``key``."""
    return prune_algos.PRUNE_ALGO_DICT[key].func


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
    """The host's "Edge Answer Logit Diff Gradient At Clean", with any ablation type."""
    per_batch = not ablation.mean_over_dataset and ablation is not AblationType.ZERO
    return mask_gradient_prune_scores(
        model,
        loader,
        None,
        grad_function="logit",
        answer_function="avg_diff",
        mask_val=0.0,
        ablation_type=ablation,
        clean_corrupt="corrupt" if per_batch else None,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's and torch's generators for the ``with`` block; then put them back."""
    state = random.getstate()
    with torch.random.fork_rng():
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
