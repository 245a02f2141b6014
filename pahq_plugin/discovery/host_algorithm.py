"""Run algorithms of the host, named by their keys in its ``PRUNE_ALGO_DICT``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pahq_plugin.discovery.method import SCORING, Found, ScoringMethod
from pahq_plugin.discovery.scores import rank
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import PruneScores
from pahq_plugin.host.algorithms import NEEDS_TRUE_EDGES, SWEEPS, host_function, sized_as_the_truth
from pahq_plugin.host.prompts import loader_of
from pahq_plugin.results.result import Stats


@dataclass(frozen=True)
class HostAlgorithm(ScoringMethod):
    """An algorithm of the host.

    Attributes:
        key: its key in ``PRUNE_ALGO_DICT``; by default the method's name.
        options: arguments of the host's function to override, such as the number of epochs.
    """

    key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    uses = (SCORING - {"ablation"}) | {"true_edges"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    def measure(self, question: Question) -> PruneScores:
        """See `ScoringMethod.measure`."""
        drawn = loader_of(list(question.prompts), question.loader)
        return host_function(self.key, self.options)(question.model, drawn, question.true_edges)

    def run(self, question: Question, stats: Stats) -> Found:
        """See `Method.run`. If the host sweeps thresholds, the circuit is the edges that none of them
        removes."""
        scores, n_edges = self.scored(question, stats), question.n_edges
        more: dict[str, Any] = {"n_edges": n_edges}
        if self.options:
            more["options"] = dict(self.options)
        if n_edges is None and self.key in SWEEPS:
            n_edges = sum(int(values.isinf().sum()) for values in scores.values())
        return rank(scores, question.edges, n_edges), more

    def check_without_true_edges(self) -> None:
        """See `Method.check_without_true_edges`."""
        if sized_as_the_truth(self.key, self.options):
            raise ConfigError(
                f"method {self.name!r} looks for a circuit of the size of true_edges, the official "
                "circuit; where none is published give it the option circuit_sizes, such as [100]"
            )
        if self.key == NEEDS_TRUE_EDGES:
            raise ConfigError(
                f"method {self.name!r} needs true_edges, the official circuit; "
                "problem.true_edges holds it where one is published"
            )
