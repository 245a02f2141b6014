"""Tables of made-up searches and judgements, every column worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pahq_plugin as pahq
from pahq_plugin.compare import tables as frames
from pahq_plugin.compare.plan import Search
from pahq_plugin.compare.summary import (
    at_threshold,
    by_seed,
    estimate,
    heads,
    over_seeds,
    precision_study,
    ranking_scores,
    roc,
    summary,
    top_heads,
)
from pahq_plugin.compare.tables import Finding, Material
from pahq_plugin.discovery.register import threshold_scores
from tests.compare.made_up import (
    FINDINGS,
    FP32,
    IOI,
    MATERIAL,
    NAMES,
    OURS,
    RANKING,
    TRUE,
    circuit,
    finding,
    judged,
    row,
)
from tests.helpers.small import loader, small_model

# Rows of searches and circuits --------------------------------------------------------------------


def test_nothing_makes_empty_tables() -> None:
    nothing = Material((), ())
    for table in (frames.searches, frames.costs, frames.circuits, summary, precision_study):
        assert table(nothing).empty
    assert at_threshold(nothing, 0.1).empty


# Rankings and ROC ---------------------------------------------------------------------------------


def test_scores_of_a_sweep_are_the_smallest_threshold_that_removes() -> None:
    """Edge 1 is removed at 0.4, kept at 0.1; edge 0 is never removed: ten times the largest."""
    scores = list(ranking_scores(FINDINGS[2:4]).values())
    assert scores == [4.0, 0.4, 4.0, 0.4, 0.1]
    assert list(ranking_scores(FINDINGS[4:]).values()) == [4, 1, 3, 1, 0]


def test_an_edge_that_comes_back_has_its_smallest_threshold() -> None:
    """Kept at the larger threshold, removed at the smaller one."""
    odd = [finding(FP32, 0.4, [1.0, 0.0, 0, 0, 0]), finding(FP32, 0.1, [0.0, 1.0, 0, 0, 0])]
    assert list(ranking_scores(odd).values()) == [0.1, 0.4, 0.1, 0.1, 0.1]
    assert ranking_scores(odd) == ranking_scores(odd[::-1])


def test_scores_of_a_sweep_are_the_registrys() -> None:
    model, prompts, thresholds = small_model(n_heads=2), loader(), (0.3, 0.01, 0.1)
    found = [
        Finding(
            Search(IOI, FP32, threshold, 0),
            pahq.discover(model, prompts, method=FP32, threshold=threshold, progress=False).record(),
            {},
        )
        for threshold in thresholds
    ]
    expected = threshold_scores(model, prompts, method=FP32, thresholds=thresholds)
    theirs = {(edge.name, edge.seq_idx): float(edge.prune_score(expected)) for edge in model.edges}
    assert ranking_scores(found) == pytest.approx(theirs)
    assert len(set(theirs.values())) > 2


def test_roc_points_by_hand() -> None:
    """Circuits {0, 2} and {0, 1, 2, 3}; of the ranking the cuts 0 | 2 | 1, 3 | 4."""
    assert roc(FINDINGS[2:4], TRUE) == [(1 / 3, 1 / 2), (2 / 3, 1)]
    points = np.array(roc(FINDINGS[4:], TRUE))
    np.testing.assert_allclose(points, [(0, 0), (0, 0.5), (1 / 3, 0.5), (2 / 3, 1), (1, 1)])


# Summary ------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    table = summary(MATERIAL)
    assert table["method"].tolist() == [FP32, OURS, RANKING]
    exact, ours, ranking = (row(table, method=method) for method in (FP32, OURS, RANKING))
    assert (ours["searches"], ours["thresholds"], ours["edges"]) == (2, 2, 5)
    assert (ranking["searches"], ranking["thresholds"]) == (1, 1)
    # Scores 4, 0.4 of true edges; 4, 0.4, 0.1 of others: (0.5 + 1 + 1 + 0 + 0.5 + 1) / 6.
    assert ours["roc_auc"] == pytest.approx(4 / 6)
    assert ours["pessimistic_auc"] == pytest.approx(2 / 3 * 1 / 2 + 1 / 3 * 1 / 2)
    # Scores 4, 1 of true edges; 3, 1, 0 of others: (3 + 0 + 0.5 + 1) / 6.
    assert ranking["roc_auc"] == pytest.approx(4.5 / 6)
    assert ranking["pessimistic_auc"] == pytest.approx(1 / 2 + 1 / 3 * 1 / 2)
    assert exact["roc_auc"] == 1 and exact["pessimistic_auc"] == 1
    assert (exact["threshold_stability"], ours["threshold_stability"]) == (2 / 3, 1 / 2)
    assert math.isnan(exact["seed_stability"]) and math.isnan(ranking["threshold_stability"])
    assert (exact["differing"], exact["decisions"]) == (0, 10)
    assert (ours["differing"], ours["decisions"]) == (3, 10)
    assert math.isnan(ranking["differing"])


def test_areas_by_hand() -> None:
    """FP32: faithfulness in the loss 0.25 at 2 of 5 edges and 0.75 at 3; ours 0.25 and 1.5 at 2."""
    table = summary(MATERIAL)
    exact, ours, ranking = (row(table, method=method) for method in (FP32, OURS, RANKING))
    area = 0.4 * 0.25 / 2 + 0.2 * (0.25 + 0.75) / 2 + 0.4 * (0.75 + 1) / 2
    assert exact["cpr_loss"] == pytest.approx(area) and exact["cmd_loss"] == pytest.approx(1 - area)
    assert ours["cpr_logit_diff"] == pytest.approx(0.4 * 1.5 / 2 + 0.6 * 2.5 / 2)
    # Up to 1 at 2/3 of the way to 0.4, a triangle of 0.5 above 1 on each side of 0.4.
    above = (0.4 / 3) * 0.5 / 2 + 0.6 * 0.5 / 2
    assert ours["cmd_logit_diff"] == pytest.approx(0.4 * 2 / 3 / 2 + above)
    # 0 at 1 of 5 edges, 0.75 at 4.
    assert ranking["cpr_loss"] == pytest.approx(0.6 * 0.75 / 2 + 0.2 * 1.75 / 2)
    for name in ("cpr_loss", "cmd_loss", "cpr_logit_diff", "roc_auc"):
        assert exact[f"{name}_low"] <= exact[name] + 1e-12
        assert exact[name] <= exact[f"{name}_high"] + 1e-12
    assert exact["cpr_loss_low"] < exact["cpr_loss_high"], "prompts differ"
    assert ours["cpr_loss_low"] == pytest.approx(ours["cpr_loss_high"]), "prompts are equal"


def test_seeds_are_averaged() -> None:
    """Two more seeds: kept {0}, {0, 1} and {0, 1} at one threshold."""
    found = [
        finding(FP32, 0.4, [1.0, 0, 0, 0, 0]),
        finding(FP32, 0.4, [1.0, 1.0, 0, 0, 0], seed=1),
        finding(FP32, 0.4, [1.0, 1.0, 0, 0, 0], seed=2),
    ]
    only = row(summary(Material(tuple(found), (judged(FP32, []),))), method=FP32)
    assert only["seed_stability"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert math.isnan(only["threshold_stability"])
    # One true edge wins all, the other ties with three: (3 + 1.5) / 6; then 1 and 1.
    assert only["roc_auc"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert (only["roc_auc_low"], only["roc_auc_high"]) == (0.75, 1)
    assert only["pessimistic_auc"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_neighbours_are_by_threshold_and_seeds_apart() -> None:
    mixed = [FINDINGS[2], finding(OURS, 0.2, [0.0] * 5, seed=1), FINDINGS[3]]
    groups = [[(f.search.seed, f.search.threshold) for f in group] for group in by_seed(mixed)]
    assert groups == [[(0, 0.1), (0, 0.4)], [(1, 0.2)]]


def test_estimates_by_hand() -> None:
    groups = [(np.array([[1.0], [3.0]]), square), (np.array([[4.0]]), square)]
    made = estimate("x", groups)
    # Means of two draws: 1 in 1 of 64 cases, (1 + 4) / 2 in 4 of 64, 16 in 16 of 64.
    assert made == {"x": (4 + 16) / 2, "x_low": 2.5, "x_high": 16}
    assert over_seeds("x", [1.0, 3.0]) == {"x": 2, "x_low": 1, "x_high": 3}


def square(means: Any) -> Any:
    return means[:, 0] ** 2


# One threshold ------------------------------------------------------------------------------------


def test_circuits_at_a_threshold_by_hand() -> None:
    table = at_threshold(MATERIAL, 0.1)
    assert table["method"].tolist() == [FP32, RANKING], "ours was not judged there"
    exact, ranking = row(table, method=FP32), row(table, method=RANKING)
    assert (exact["size"], exact["loss"], exact["logit_diff"], exact["accuracy"]) == (3, 1, 1.5, 0.5)
    assert (exact["loss_low"], exact["loss_high"]) == (0, 2)
    assert (exact["faithfulness_loss"], exact["completeness_loss"]) == (0.75, 0.75)
    assert (exact["faithfulness_loss_low"], exact["faithfulness_loss_high"]) == (0.5, 1)
    # The FP32 circuit has 3 edges; of the ranking two tie for the third place.
    assert (ranking["size"], ranking["loss"], ranking["faithfulness_loss"]) == (4, 1, 0.75)
    assert (ranking["completeness_loss"], ranking["completeness_logit_diff"]) == (0.25, 0.5)
    assert at_threshold(MATERIAL, 0.2).empty


def test_seeds_are_averaged_at_a_threshold() -> None:
    rows = [[0.0, 2.0, 1.0]] * 2, [[4.0, 0.0, 0.0]] * 2
    two = [judged(FP32, [circuit(0.1, 2 + s, rows[s], rows[1 - s])], seed=s) for s in (0, 1)]
    only = row(at_threshold(Material((), tuple(two)), 0.1), method=FP32)
    assert (only["size"], only["loss"], only["faithfulness_loss"]) == (2.5, 2, 0.5)
    assert (only["completeness_logit_diff"], only["accuracy_low"], only["accuracy_high"]) == (0.5, 0, 1)


# What precision changes ---------------------------------------------------------------------------


def test_precision_by_hand() -> None:
    """At 0.4 FP32 keeps A0.0->MLP 0 and A0.1->A1.0.Q, ours A0.0->MLP 0 and MLP 0->A1.1.K."""
    table = precision_study(MATERIAL)
    assert sorted(table["threshold"]) == [0.1, 0.4] and set(table["method"]) == {OURS}
    at = row(table, threshold=0.4)
    assert (at["differing"], at["worst"], at["jaccard"], at["searches"]) == (2, 2, 1 / 3, 1)
    assert (at["heads_lost"], at["heads_gained"]) == (2, 1), "A0.1 and A1.0; A1.1"
    assert at["top_heads"] == 0.5, "A0.0 of A0.0 and A0.1"
    assert at["faithfulness_off"] == 0 and at["exact_share"] == 0.6
    assert math.isnan(row(table, threshold=0.1)["faithfulness_off"]), "ours was not judged there"


def test_precision_over_seeds() -> None:
    found = [
        finding(FP32, 0.4, [1.0, 1.0, 0, 0, 0]),
        finding(FP32, 0.4, [1.0, 1.0, 0, 0, 0], seed=1),
        finding(OURS, 0.4, [1.0, 1.0, 0, 0, 0]),
        finding(OURS, 0.4, [0.0, 0.0, 1.0, 0, 0], seed=1),
    ]
    whole, half = [[0.0, 2.0, 1.0]] * 2, [[2.0, 1.0, 1.0]] * 2
    ran = [
        judged(method, [circuit(0.4, 2, rows, half)], seed=seed)
        for method, seed, rows in ((FP32, 0, whole), (FP32, 1, half), (OURS, 0, half), (OURS, 1, whole))
    ]
    only = row(precision_study(Material(tuple(found), tuple(ran))), method=OURS)
    assert (only["differing"], only["worst"], only["jaccard"], only["searches"]) == (1.5, 3, 0.5, 2)
    assert only["faithfulness_off"] == 0.5, "once above, once below"


def test_top_heads_by_hand() -> None:
    """Kept outgoing edges only, by the sum of |effect|; at most five."""
    found = finding(RANKING, None, [-1.0, 2.0, 9.0, 0.0, 9.0])
    assert top_heads(found) == {"A0.0", "A0.1"}, "no head: MLP 0, Resid Start; not kept: A1.0"
    many = {f"A0.{i}->MLP {j}": (-1) ** j * (1 + i) for i in range(7) for j in (0, 1)}
    rest = {"seq_idx": None, "kept": True, "exact": True}
    decisions = [{"edge": name, "effect": effect} | rest for name, effect in many.items()]
    six = Finding(Search(IOI, RANKING, None, 0), {"decisions": decisions}, {})
    assert top_heads(six) == {"A0.2", "A0.3", "A0.4", "A0.5", "A0.6"}, "signs do not cancel"


def test_heads_by_hand() -> None:
    names = [(name, None) for name in NAMES]
    assert heads(names) == {"A0.0", "A0.1", "A1.0", "A1.1"}
    assert heads(names[2:3]) == {"A1.1"} and heads([]) == set()
