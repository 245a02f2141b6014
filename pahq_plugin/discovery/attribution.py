"""Gradient attribution of every edge: EAP, EAP-IG, and EAP-IG over activations.

1. At some points near or between the ablated and the clean run, take the gradient of the loss at each
   destination's input.
2. Score an edge by the inner product of its mean over the points and its source's (ablated - clean)
   output.

The points, with shares k/m of the clean values, k = 1..m:

- ``eap``: the clean run (Syed et al. 2023, arXiv 2310.10348);
- ``eap-ig``: the embedding ``ablated + k/m (clean - ablated)`` (Hanna et al. 2024, arXiv 2403.17806);
- ``eap-ig-activations``: for each attention layer, each MLP and the embedding in turn, its outputs
  ``ablated + k/m (clean - ablated)`` and everything else as it follows from the clean prompts; the mean
  is over all of these (method "EAP-IG-activations" of hannamw/EAP-IG, ``src/eap/attribute.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

from pahq_plugin.choices import ATTRIBUTION_STEPS
from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.discovery.method import SCORING, Found, ScoringMethod
from pahq_plugin.discovery.scores import rank
from pahq_plugin.engines.incremental.attribution import Points, attribute
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import PruneScores
from pahq_plugin.host.prompts import past_length
from pahq_plugin.metrics import check_answers, kl_div, logit_diff, mse
from pahq_plugin.models.blocks import unsupported
from pahq_plugin.models.checks import output_width
from pahq_plugin.results.result import Stats

FLAT_AT_CLEAN = (kl_div, mse)
"""Distances from the clean output, which have no gradient there."""


@dataclass(frozen=True)
class Attribution(ScoringMethod):
    """A method that scores edges by gradients.

    Attributes:
        points: where gradients are taken, see the module's docstring.
    """

    _: KW_ONLY
    points: Points = "clean"
    reads_answers: bool = True
    draws: bool = False

    default_metric = "logit_diff"

    @property
    def uses(self) -> frozenset[str]:  # type: ignore[override]
        """See `Method.uses`."""
        return SCORING | {"metric"} | (set() if self.points == "clean" else {"steps"})

    def run(self, question: Question, stats: Stats) -> Found:
        """See `Method.run`.

        Raises:
            ConfigError: the metric has no gradient at the only point.
            MetricError: the metric reads answers that are no token ids, or cannot be differentiated.
        """
        name, metric = question.metric
        at_clean = self.points == "clean" or _steps(question) == 1
        if at_clean and metric in FLAT_AT_CLEAN:
            instead = 'method="eap-ig"' if self.points == "clean" else "more steps"
            raise ConfigError(
                f"method {self.name!r} cannot use metric {name!r}, whose gradient is 0 at the clean "
                f'state; use {instead}, or metric="logit_diff"'
            )
        if metric is logit_diff:
            check_answers(question.prompts, output_width(question.model, question.prompts[0].clean))
        scores = replace(self, scores=self._implementation(question)).scored(question, stats)
        more: dict[str, Any] = {"n_edges": question.n_edges, "metric": name}
        if "steps" in self.uses:
            more["steps"] = _steps(question)
        return rank(scores, question.edges, question.n_edges), more

    def _implementation(self, question: Question) -> Callable[[Question], PruneScores]:
        """Return the function that scores all edges: the mean over batches; with ``eap`` the sum, as the
        host's. Models that the incremental engine does not support are differentiated on the host."""
        longest = max(batch.clean.shape[1] for batch in question.prompts)
        objection = unsupported(question.model, past_length(question.model) + longest)
        mean = partial(
            attribute_by_hooks if objection else attribute, points=self.points, steps=_steps(question)
        )
        if self.points != "clean":
            return mean
        count = len(question.prompts)
        return lambda question: {name: count * values for name, values in mean(question).items()}


def _steps(question: Question) -> int:
    return question.steps or ATTRIBUTION_STEPS
