"""Searches on small models, and what they say of each edge."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from auto_circuit.types import Edge, PruneScores
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from tests.helpers.architectures import Architecture, random_architecture
from tests.helpers.small import small_model

EAP = "Edge Answer Logit Diff Gradient At Clean"
"""The host's key of what we call ``eap``."""

discover = partial(pahq.discover, progress=False)


def small_edges(n_heads: int = 2, **changes: Any) -> PatchableModel:
    """As `small_model`, with fewer edges."""
    return small_model(n_heads=n_heads, **changes)


def case(seed: int = 3, **changes: Any) -> Architecture:
    """A random architecture of few edges, with changes."""
    return dataclasses.replace(random_architecture(seed, max_edges=150), **changes)


def scores_by_edge(model: PatchableModel, scores: PruneScores) -> dict[Edge, float]:
    """Prune scores of the host, by edge."""
    return {edge: edge.prune_score(scores).item() for edge in model.edges}


def by_edge(result: pahq.Discovery) -> dict[Edge, float]:
    """Effects or scores of a result, by edge."""
    return {decision.edge: decision.effect for decision in result.decisions}
