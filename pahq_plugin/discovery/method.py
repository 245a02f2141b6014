"""Define methods as values that run themselves.

A `ScoringMethod` scores all edges at once: a name and a function. `Search` (in `search`) tests one edge
after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from pahq_plugin.discovery.cost import forward_seconds, measured
from pahq_plugin.discovery.scores import rank
from pahq_plugin.engines.question import Question
from pahq_plugin.host import PruneScores
from pahq_plugin.metrics import check_answers
from pahq_plugin.models.checks import output_width
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Stats

Found = tuple[list[Decision], dict[str, Any]]
"""Decisions, and settings known only after the run."""

SCORING = frozenset({"ablation", "batches", "n_edges", "prune"})
"""Arguments of ``discover`` that a method that scores edges can use."""


@dataclass(frozen=True)
class Method:
    """A way to find a circuit. Derive from `ScoringMethod` rather than from this class.

    Attributes:
        name: its name in ``method=``.
        title: short description for tables.
    """

    name: str
    title: str = ""

    uses = frozenset[str]()
    """Arguments of `discover` that the method uses; all others are refused."""

    searches = False
    """Whether it tests edges against a threshold; otherwise it scores all edges at once."""

    default_metric: ClassVar[str | None] = None
    """Name of the metric it uses by default; ``None`` for that of searches."""

    shares_prompts = False
    """Whether several processes can share the prompts; searches always can."""

    needs_heads = False
    """Whether it works on transformers only."""

    reads_answers = False
    """Whether it differentiates the logits of the answers, which must then be token ids."""

    key = ""
    """Key of a host algorithm in ``PRUNE_ALGO_DICT``."""

    options = MappingProxyType[str, Any]({})
    """Arguments of a host algorithm's function to override."""

    draws = True
    """Whether it draws random numbers; no other run may then draw from the global generators."""

    @property
    def fixed_precision(self) -> Any:
        """The `PrecisionConfig` it always runs in; ``None`` if the user or the device chooses."""
        return None

    def check_without_true_edges(self) -> None:
        """Raise if the method cannot run without an official circuit.

        Raises:
            ConfigError: it needs one.
        """

    def run(self, question: Question, stats: Stats) -> Found:
        """Find the circuit.

        Args:
            question: already checked; its model is borrowed.
            stats: the cost is added here.

        Returns:
            One decision per edge, and settings known only after the run.
        """
        raise NotImplementedError


def settings_of(method: Method, question: Question) -> dict[str, Any]:
    """Return the settings that every result records, as JSON values."""
    return {
        "method": method.name,
        "scored": not method.searches,
        "ablation": question.ablation.name.lower(),
        "batches": question.batches,
        "seed": question.seed,
    }


@dataclass(frozen=True)
class ScoringMethod(Method):
    """A method that scores all edges at once; the circuit is the edges of largest magnitude.

    Attributes:
        scores: maps a `Question` to host prune scores, one tensor per destination module with the shape
            of its patch mask.
        reads_answers: whether it differentiates the logits of the answers.
        needs_heads: whether it works on transformers only.
    """

    scores: Callable[[Question], PruneScores] | None = None
    _: KW_ONLY
    reads_answers: bool = False
    needs_heads: bool = False
    draws: bool = field(default=True, repr=False)

    uses = SCORING

    def run(self, question: Question, stats: Stats) -> Found:
        """See `Method.run`."""
        if self.reads_answers:
            check_answers(question.prompts, output_width(question.model, question.prompts[0].clean))
        scores = self.scored(question, stats)
        return rank(scores, question.edges, question.n_edges), {"n_edges": question.n_edges}

    def measure(self, question: Question) -> PruneScores:
        """Call `scores`."""
        assert self.scores is not None
        return self.scores(question)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def scored(self, question: Question, stats: Stats) -> PruneScores:
        """Score all edges and add the cost to ``stats``."""
        prompts = question.prompts
        with measured(stats, prompts[0].clean.device):
            scores = self.measure(question)
        stats.forward_equivalents = stats.seconds / forward_seconds(question.model, prompts)
        return scores
