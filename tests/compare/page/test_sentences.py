"""Sentences about made-up tables."""

from __future__ import annotations

import pandas as pd
import pytest

from pahq_plugin.compare.page.charts import Frames
from pahq_plugin.compare.page.page import Report
from pahq_plugin.compare.page.sentences import findings, rates, same_circuits, small_end


def frames_of(points: list[dict], summary: list[dict], searches: list[dict]) -> Frames:
    nothing = pd.DataFrame()
    return Frames(
        pd.DataFrame(searches), nothing, nothing, pd.DataFrame(summary), pd.DataFrame(points), nothing
    )


def point(method: str, mean: float, low: float, high: float, threshold: float = 0.1) -> dict:
    behaviour = "faithfulness_loss"
    values = {behaviour: mean, f"{behaviour}_low": low, f"{behaviour}_high": high}
    return {"problem": "p", "method": method, "threshold": threshold, "size": 7.0} | values


@pytest.mark.parametrize(
    ("ours", "rival", "expected"),
    [
        (
            (0.9, 0.8, 0.95),
            (0.5, 0.4, 0.6),
            "is above that of eap in minus the loss (0.90 against 0.50",
        ),
        ((0.9, 0.5, 0.95), (0.7, 0.4, 0.8), "(0.90 against 0.70; intervals overlap)"),
        ((0.3, 0.2, 0.4), (0.7, 0.6, 0.8), "is below that of eap in minus the loss"),
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "equals that of eap in minus the loss (0.50)"),
    ],
)
def test_the_small_end(ours: tuple, rival: tuple, expected: str) -> None:
    """At the largest threshold that both have."""
    early = [point("pahq", 0.1, 0.1, 0.1, 0.01), point("eap", 1.0, 1.0, 1.0, 0.01)]
    points = [*early, point("pahq", *ours), point("eap", *rival), point("pahq", 0, 0, 0, 0.5)]
    sentence = small_end("p", frames_of(points, [], []))
    assert expected in sentence and "(threshold 0.1, 7 edges)" in sentence
    assert small_end("p", frames_of(early[:1], [], [])) == ""


def test_the_same_circuits_or_not() -> None:
    row = {"problem": "p", "method": "pahq", "edges": 100, "differing": 0.0}
    assert "in all 2 searches (200 decisions)" in same_circuits(frames_of([], [], [row, row]))
    worse = same_circuits(frames_of([], [], [row, row | {"differing": 3.0}]))
    assert "in 1 of 2 searches; 3 of 200 decisions differ" in worse
    assert same_circuits(frames_of([], [], [row | {"method": "eap", "differing": None}])) == ""


def test_rates_say_when_we_are_behind() -> None:
    rows = [
        {"problem": "p", "method": "pahq", "roc_auc": 0.9},
        {"problem": "p", "method": "host-acdc", "roc_auc": 0.95},
    ]
    (sentence,) = rates(frames_of([], rows, []))
    assert "pahq 0.900, host-acdc 0.950" in sentence and "pahq is below the host's loop" in sentence
    assert rates(frames_of([], [{"problem": "p", "method": "pahq"}], [])) == []


def test_all_sentences_of_a_report(report: Report) -> None:
    first, second = findings(report.frames)
    assert first.startswith("pahq found the circuit of acdc in FP32, edge for edge, in all 2 searches")
    assert second.startswith("On greater-than, where circuits are small (threshold 0.03")
