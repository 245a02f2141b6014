"""Rows of searches, costs and circuits, worked out by hand."""

from __future__ import annotations

import math

from pahq_plugin.compare import tables as frames
from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.compare.tables import Material
from tests.compare.made_up import FINDINGS, FP32, JUDGED, MATERIAL, OURS, RANKING, circuit, judged, row


def test_searches_by_hand() -> None:
    table = frames.searches(MATERIAL)
    assert len(table) == len(FINDINGS)
    ours = row(table, method=OURS, threshold=0.4)
    assert (ours["problem"], ours["seed"], ours["edges"], ours["kept"]) == ("ioi", 0, 5, 2)
    assert (ours["differing"], ours["jaccard"], ours["exact_share"]) == (2, 1 / 3, 3 / 5)
    assert (ours["false_rate"], ours["true_rate"]) == (1 / 3, 1 / 2)
    exact = row(table, method=FP32, threshold=0.1)
    assert (exact["differing"], exact["jaccard"], exact["exact_share"]) == (0, 1, 1)
    ranking = row(table, method=RANKING)
    assert ranking["kept"] == 4
    unknown = ("threshold", "differing", "jaccard", "exact_share", "false_rate", "true_rate")
    assert all(math.isnan(ranking[name]) for name in unknown)


def test_the_fp32_search_is_that_of_the_same_task() -> None:
    """Another problem, seed, threshold, number of batches or ablation is another task."""
    ours = FINDINGS[2].search
    assert MATERIAL.exact_for(ours) is FINDINGS[1]
    for changes in (
        {"problem": ProblemSpec("ioi", batch_size=4)},
        {"seed": 1},
        {"threshold": 0.3},
        {"batches": 2},
        {"ablation": "zero"},
    ):
        other = Search(**{**vars(ours), **changes})
        assert MATERIAL.exact_for(other) is None


def test_costs_by_hand() -> None:
    spent = row(frames.costs(MATERIAL), method=RANKING)
    assert (spent["seconds"], spent["extra_mib"], spent["peak_mib"]) == (2, 1, 3)
    assert (spent["forward_equivalents"], spent["evaluations"], spent["re_evaluations"]) == (4, 5, 1)


def test_circuits_by_hand() -> None:
    table = frames.circuits(MATERIAL)
    exact = row(table, method=FP32, threshold=0.1)
    assert (exact["size"], exact["share"], exact["metric"], exact["seed"]) == (3, 0.6, "kl_div", 0)
    assert (exact["loss"], exact["logit_diff"], exact["accuracy"]) == (1, 1.5, 0.5)
    assert (exact["faithfulness_loss"], exact["faithfulness_logit_diff"]) == (0.75, 0.75)
    assert (exact["completeness_loss"], exact["completeness_logit_diff"]) == (0.75, 0.75)
    ours = row(table, method=OURS)
    assert (ours["faithfulness_loss"], ours["faithfulness_logit_diff"]) == (0.25, 1.5)
    assert ours["completeness_loss"] == 1
    cut = row(table[table["threshold"].isna()], method=RANKING)
    assert cut["faithfulness_loss"] == 0 and math.isnan(cut["completeness_loss"])


def test_more_behaviour_is_a_larger_number() -> None:
    rows = [[3.0, 1.0, 0.0], [1.0, 2.0, 1.0]]
    assert JUDGED[0].behaviours == ["loss", "logit_diff"]
    assert JUDGED[0].behaviour("loss", rows).tolist() == [-3, -1]
    assert JUDGED[0].behaviour("logit_diff", rows).tolist() == [1, 2]


def test_a_loss_alone_has_no_other_columns() -> None:
    lone = judged(FP32, [circuit(0.1, 3, [[1.0], [1.0]], [[4.0], [4.0]])], answered=False)
    only = row(frames.circuits(Material((), (lone,))), method=FP32)
    assert only["faithfulness_loss"] == 0.75 and only["completeness_loss"] == 1
    assert only["logit_diff"] is None and only["accuracy"] is None
    assert "faithfulness_logit_diff" not in only
