"""Made-up searches and judgements, small enough to work out every column by hand."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.compare.tables import Finding, Judged, Material

NAMES = ["A0.0->MLP 0", "A0.1->A1.0.Q", "MLP 0->A1.1.K", "A1.0->Resid End", "Resid Start->A0.0.V"]
TRUE = frozenset([(NAMES[0], None), (NAMES[1], None)])
IOI = ProblemSpec("ioi")
FP32, OURS, RANKING = "acdc", "pahq", "eap"


def finding(
    method: str, threshold: float | None, effects: list[float], seed: int = 0, **changes: Any
) -> Finding:
    """One decision per name; every other one of a search is exact."""
    decisions = [
        {
            "edge": name,
            "seq_idx": None,
            "effect": effect,
            "kept": effect >= threshold if threshold else effect != 0,
            "exact": method != OURS or number % 2 == 0,
        }
        for number, (name, effect) in enumerate(zip(NAMES, effects, strict=True))
    ]
    cost = {
        "seconds": 2.0,
        "forward_equivalents": 4.0,
        "evaluations": 5,
        "re_evaluations": 1,
        "extra_bytes": 2**20,
        "peak_bytes": 3 * 2**20,
    }
    return Finding(Search(IOI, method, threshold, seed, **changes), {"decisions": decisions}, cost)


def judged(
    method: str, circuits: list[dict[str, Any]], seed: int = 0, answered: bool = True, **changes: Any
) -> Judged:
    """Two prompts. The loss goes from 4 (all patched) to 0 (whole), the difference from 0 to 2."""
    width = 3 if answered else 1
    record = {
        "problem": "ioi",
        "method": method,
        "seed": seed,
        "metric": "kl_div",
        "edges": len(NAMES),
        "measures": ["loss", "logit_diff", "correct"][:width],
        "whole": [[0.0, 2.0, 1.0][:width]] * 2,
        "empty": [[4.0, 0.0, 0.0][:width]] * 2,
        "circuits": circuits,
        "true_edges": [list(name) for name in sorted(TRUE, key=str)],
    }
    return Judged(record | changes)


def circuit(
    threshold: float | None,
    size: int,
    inside: list[list[float]],
    outside: list[list[float]] | None = None,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"threshold": threshold, "size": size, "inside": inside}
    return entry | ({"outside": outside} if outside else {})


FINDINGS = (
    finding(FP32, 0.1, [1.0, 0.5, 0.2, 0.05, -3.0]),  # keeps 0, 1, 2
    finding(FP32, 0.4, [1.0, 0.5, 0.2, 0.05, -3.0]),  # keeps 0, 1
    finding(OURS, 0.4, [1.0, 0.1, 0.5, 0.1, 0.0]),  # keeps 0, 2
    finding(OURS, 0.1, [1.0, 0.1, 0.5, 0.1, 0.0]),  # keeps 0, 1, 2, 3
    finding(RANKING, None, [-4.0, 1.0, 3.0, 1.0, 0.0]),
)
JUDGED = (
    judged(
        FP32,
        [
            circuit(0.1, 3, [[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]], [[4.0, 0.0, 0.0], [2.0, 1.0, 1.0]]),
            circuit(0.4, 2, [[2.0, 1.0, 1.0], [4.0, 0.0, 0.0]], [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]),
        ],
    ),
    judged(OURS, [circuit(0.4, 2, [[3.0, 3.0, 0.0], [3.0, 3.0, 1.0]], [[4.0, 0.0, 0.0]] * 2)]),
    judged(
        RANKING,
        [
            circuit(0.1, 4, [[1.0, 2.0, 1.0], [1.0, 2.0, 1.0]], [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
            circuit(None, 1, [[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]]),
        ],
    ),
)
MATERIAL = Material(FINDINGS, JUDGED)


def row(table: DataFrame, **where: Any) -> dict[str, Any]:
    """The only row with these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0].to_dict()
