"""Methods as values that run themselves."""

from __future__ import annotations

from auto_circuit.types import PruneScores

from pahq_plugin import ScoringMethod
from pahq_plugin.engines.question import Question
from tests.helpers.replay import canonical_order
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader


def test_a_scoring_method_keeps_the_edges_of_largest_magnitude() -> None:
    """Scores of its own function, by hand."""
    model = small_edges()
    first, second, third = canonical_order(model)[:3]

    def scores(question: Question) -> PruneScores:
        assert question.model is model
        made = model.new_prune_scores()
        for edge, value in ((first, 0.5), (second, -3.0), (third, 2.0)):
            made[edge.dest.module_name][edge.patch_idx] = value
        return made

    mine = ScoringMethod("mine", scores=scores)
    assert mine.uses == {"ablation", "batches", "n_edges", "prune"} and not mine.searches
    result = discover(model, loader(), method=mine, n_edges=2)
    assert result.circuit == {second, third}
    assert [d.effect for d in result.decisions[:3]] == [-3.0, 2.0, 0.5]


def test_scoring_methods_evaluate_nothing() -> None:
    stats = discover(small_edges(), loader(), method="eap").stats
    assert (stats.evaluations, stats.re_evaluations, stats.guard) == (0, 0, {})
    assert stats.seconds > 0
