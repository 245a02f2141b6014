"""Charts of made-up tables: what is averaged, cut off, and left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pahq_plugin.compare.page import interactive
from pahq_plugin.compare.page.chart import Chart
from pahq_plugin.compare.page.charts import (
    Frames,
    faithfulness_chart,
    memory_chart,
    precision_charts,
    problem_charts,
    time_chart,
)
from pahq_plugin.compare.page.page import Report, reference_threshold
from pahq_plugin.compare.page.static import write_chart
from tests.compare.page.pictures import texts
from tests.compare.page.small_comparison import PROBLEM

BEHAVIOUR = "faithfulness_loss"
EDGES = 100


def frames(circuits: list[dict[str, Any]], points: list[dict[str, Any]]) -> Frames:
    shared = {"problem": "ioi", "metric": "kl_div"}
    rows = pd.DataFrame([shared | row for row in circuits])
    rows["share"] = rows["size"] / EDGES
    nothing = pd.DataFrame()
    given = pd.DataFrame([shared | row for row in points]) if points else pd.DataFrame(
        columns=["problem", "method", "threshold", "size", BEHAVIOUR]
    )  # fmt: skip
    return Frames(nothing, nothing, rows, pd.DataFrame([{**shared, "edges": EDGES}]), given, nothing)


def circuit(method: str, size: int, value: float, seed: int = 0, threshold: float | None = None) -> Any:
    return {"method": method, "size": size, BEHAVIOUR: value, "seed": seed, "threshold": threshold}


def point(method: str, size: float, value: float, threshold: float = 0.1) -> dict[str, Any]:
    ends = {f"{BEHAVIOUR}_low": value, f"{BEHAVIOUR}_high": value}
    return {"method": method, "size": size, "threshold": threshold, BEHAVIOUR: value} | ends


def chart(circuits: list[dict[str, Any]], points: list[dict[str, Any]] | None = None) -> Chart | None:
    return faithfulness_chart("ioi", "loss", frames(circuits, points or []))


def test_a_ranking_is_averaged_share_by_share() -> None:
    """Of ties the seeds are cut at other sizes; cuts at FP32's sizes are no points of the curve."""
    first = [circuit("eap", 1, 0.2), circuit("eap", 5, 0.4), circuit("eap", 3, 9.0, threshold=0.1)]
    second = [circuit("eap", 3, 0.4, 1), circuit("eap", 5, 0.8, 1), circuit("eap", 4, 9.0, 1, 0.1)]
    drawn = chart([*first, *second])
    assert drawn is not None
    (series,) = drawn.series
    assert list(series.x) == pytest.approx([0.02, 0.05]) and list(series.y) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 1.0], (-0.05, 1.05)),
        ([0.2, 1.3, 1.0], (-0.05, 1.35)),
        ([-0.2, 7.0], (-0.25, 1.55)),
        ([-3.0, 0.5], (-0.55, 1.05)),
    ],
)
def test_what_is_seen_of_a_curve(values: list[float], expected: tuple[float, float]) -> None:
    points = [point("pahq", 5 + i, value, 0.1 / (i + 1)) for i, value in enumerate(values)]
    drawn = chart([circuit("pahq", 5, values[0])], points)
    assert drawn is not None and drawn.y_range == pytest.approx(expected)


def test_no_curve_no_chart() -> None:
    """Only methods of the precision study, or a ranking without a score."""
    assert chart([circuit("pahq@int8", 5, 0.5)], [point("pahq@int8", 5, 0.5)]) is None
    assert chart([circuit("eap", 0, 0.5)]) is None


def test_what_was_not_measured_is_no_point(tmp_path: Path) -> None:
    circuits = [circuit("eap", 2, math.nan), circuit("eap", 5, 0.5), circuit("pahq", 7, 0.4)]
    drawn = chart(circuits, [point("pahq", 7, math.nan), point("pahq", 9, 0.4, 0.01)])
    assert drawn is not None
    assert [list(series.x) for series in drawn.series] == [[0.05], [0.09]]
    assert "NaN" not in interactive.figure(drawn)


def costs(*rows: tuple[str, float, float]) -> Frames:
    columns = ["method", "seconds", "extra_mib"]
    spent = pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows]).assign(problem="ioi")
    nothing = pd.DataFrame()
    return Frames(nothing, spent, nothing, nothing, nothing, nothing)


def test_no_costs_no_chart() -> None:
    """Where all plain methods were refused, or only others were asked for."""
    studied = costs(("unguarded@int4", 1.0, 1.0))
    assert time_chart("ioi", studied) is None and memory_chart("ioi", studied) is None


def test_costs_are_listed_as_they_are(tmp_path: Path) -> None:
    """Also 0, which no logarithmic axis has, and what is far below all others."""
    spent = costs(("pahq", 3.0, 4.0), ("pahq", 5.0, 8.0), ("random", 0.00004, 0.0))
    time, memory = time_chart("ioi", spent), memory_chart("ioi", spent)
    assert time is not None and memory is not None
    assert (time.x_log, memory.x_log) == (True, False)
    assert list(time.series[0].x) == [0.00004, 4.0] and list(memory.series[0].x) == [0.0, 6.0]
    table = interactive.numbers(memory)
    assert table.columns == ["method", "MiB above the loaded model", "minimum to maximum"]
    assert list(table.rows) == [["random", "0", "0 to 0"], ["pahq", "6", "4 to 8"]]
    for one in (time, memory):
        write_chart(one, tmp_path)
    assert {"random", "pahq", "4e-05", "4"} <= texts(tmp_path / "time-ioi.svg")


def test_the_threshold_of_the_page_is_one_of_the_compared_methods() -> None:
    points = [point("pahq", 5, 0.5, 0.1), *(point("pahq@int8", 5, 0.5, t) for t in (0.001, 0.003))]
    report: Any = type("Report", (), {"frames": frames([circuit("pahq", 5, 0.5)], points)})
    assert reference_threshold("ioi", report) == 0.1


def test_charts_of_a_problem(report: Report) -> None:
    charts = {c.ident: c for c in problem_charts(PROBLEM, report.material, report.frames)}
    loss = charts["faithfulness-loss-greater-than"]
    assert [s.name for s in loss.series] == ["pahq", "acdc", "eap"]
    ours, exact, _ = loss.series
    assert (list(ours.x), list(ours.y)) == (list(exact.x), list(exact.y))
    dots = charts["time-greater-than"].series[0]
    assert set(dots.y) == {"pahq", "acdc", "eap"} and list(dots.x) == sorted(dots.x)
    (precision,) = precision_charts(report.frames)
    assert [s.name for s in precision.series] == ["unguarded@int4"]
