"""Charts of a comparison, made from its tables.

Points of a curve are means over seeds: per threshold for searches, per share of the edges for rankings.
Intervals are 95 %, over held-out prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from pahq_plugin.compare.baselines import EXACT, get_baseline
from pahq_plugin.compare.page.chart import Chart, Series
from pahq_plugin.compare.plan import slug
from pahq_plugin.compare.summary import by_seed, roc
from pahq_plugin.compare.tables import Material

BEHAVIOUR_NAMES = {"loss": "minus the loss", "logit_diff": "logit difference"}


@dataclass(frozen=True)
class Frames:
    """The tables of a comparison, see `pahq_plugin.compare.tables` and ``summary``.

    ``points`` are circuits at each threshold, with intervals; ``study`` is the effect of precision.
    """

    searches: pd.DataFrame
    costs: pd.DataFrame
    circuits: pd.DataFrame
    summary: pd.DataFrame
    points: pd.DataFrame
    study: pd.DataFrame


def problem_charts(problem: str, material: Material, frames: Frames) -> list[Chart]:
    """Return all charts of one problem, the most informative first."""
    charts = [faithfulness_chart(problem, behaviour, frames) for behaviour in BEHAVIOUR_NAMES]
    charts += [roc_chart(problem, material), time_chart(problem, frames), memory_chart(problem, frames)]
    return [chart for chart in charts if chart is not None]


def plain(methods: Iterable[str]) -> list[str]:
    """Return the methods without duplicates and without those of the precision study."""
    return [name for name in dict.fromkeys(methods) if "@" not in name]


def roc_chart(problem: str, material: Material) -> Chart | None:
    """Return the ROC chart of each method's first seed; ``None`` if no published circuit is known."""
    true = material.true_edges.get(problem)
    if true is None:
        return None
    findings = [f for f in material.findings if f.search.problem.label == problem]
    series = []
    for method in plain(f.search.method for f in findings):
        (first, *_) = by_seed([f for f in findings if f.search.method == method])
        points = roc(first, true)
        sweeps = get_baseline(method).sweeps
        if sweeps:
            points = [(0.0, 0.0), *_rising(points), (1.0, max(y for _, y in points))]
        x, y = zip(*points, strict=True)
        series.append(Series(method, x, y, step="stairs" if sweeps else "straight"))
    return Chart(
        f"roc-{slug(problem)}",
        f"ROC against the published circuit, {problem}",
        "A search is a staircase through its circuits, one per threshold: the pessimistic curve of the "
        "ACDC paper. A ranking has a point at every cut-off. First seed of each method.",
        "false positive rate",
        "true positive rate",
        series,
        y_range=(0.0, 1.05),
    )


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that raise the true positive rate, so that the staircase never falls."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def faithfulness_chart(problem: str, behaviour: str, frames: Frames) -> Chart | None:
    """Return the chart of faithfulness against share of edges; ``None`` if it was not measured.

    Each point of a ranking is the mean over seeds of one nominal share: with ties, the circuits of
    different seeds may have different sizes.
    """
    column = f"faithfulness_{behaviour}"
    rows = frames.circuits[frames.circuits["problem"] == problem]
    if column not in rows or rows[column].isna().all():
        return None
    points = frames.points[frames.points["problem"] == problem]
    edges = int(frames.summary[frames.summary["problem"] == problem]["edges"].iloc[0])
    series = []
    for method in plain(rows["method"]):
        if get_baseline(method).sweeps:
            own = points[(points["method"] == method) & (points["size"] > 0)].dropna(subset=[column])
            series.append(_interval_series(method, own.sort_values("size"), column, edges))
        else:
            own = rows[(rows["method"] == method) & rows["threshold"].isna()]
            mean = own.groupby(own.groupby("seed").cumcount())[["share", column]].mean().dropna()
            mean = mean[mean["share"] > 0]
            series.append(Series(method, list(mean["share"]), list(mean[column])))
    series = [one for one in series if one.x]
    if not series:
        return None
    if behaviour == "loss":
        shown, why = f"minus {rows['metric'].iloc[0]}", "Searches keep this loss low."
    else:
        shown, why = "logit difference", "Attribution estimates this, and MIB measures it."
    return Chart(
        f"faithfulness-{behaviour.replace('_', '-')}-{slug(problem)}",
        f"Faithfulness against size, {problem}, {shown}",
        "0: same as with every edge patched; 1: same as the whole model. Held-out prompts; searches "
        f"with 95 % intervals over prompts and seeds. Curves of equal circuits coincide. {why}",
        "share of edges kept",
        "faithfulness",
        series,
        x_log=True,
        y_range=_range(series),
    )


def _interval_series(method: str, own: pd.DataFrame, column: str, edges: int) -> Series:
    return Series(
        method,
        [size / edges for size in own["size"]],
        list(own[column]),
        list(own[f"{column}_low"]),
        list(own[f"{column}_high"]),
        notes=[
            f"threshold {threshold:g}, {size:.0f} edges"
            for threshold, size in zip(own["threshold"], own["size"], strict=True)
        ],
    )


def _range(series: Iterable[Series]) -> tuple[float, float]:
    """Return a range that includes 0 to 1 and is cut off at about -0.5 and 1.5."""
    values = [float(y) for one in series for y in (*one.y, *one.low, *one.high)]  # type: ignore[arg-type]
    return max(-0.5, min(0.0, *values)) - 0.05, min(1.5, max(1.0, *values)) + 0.05


def time_chart(problem: str, frames: Frames) -> Chart | None:
    """Return the chart of seconds per search; ``None`` if there are no searches."""
    return _cost_chart(
        problem, frames, "seconds", "Time", "seconds per search",
        "Median over thresholds and seeds, with minimum and maximum. A search has one threshold. "
        "Processes may have run in parallel: compare ratios.",
    )  # fmt: skip


def memory_chart(problem: str, frames: Frames) -> Chart | None:
    """Return the chart of memory above the loaded model; ``None`` if there are no searches."""
    return _cost_chart(
        problem, frames, "extra_mib", "Memory", "MiB above the loaded model",
        "Peak resident memory of the method's own process, minus that before the search. Median over "
        "thresholds and seeds, with minimum and maximum.",
    )  # fmt: skip


def _cost_chart(
    problem: str, frames: Frames, column: str, title: str, label: str, caption: str
) -> Chart | None:
    rows = frames.costs[frames.costs["problem"] == problem]
    grouped = rows[~rows["method"].str.contains("@")].groupby("method", sort=False)[column]
    middle, least, most = grouped.median().sort_values(), grouped.min(), grouped.max()
    names = list(middle.index)
    if not names:
        return None
    return Chart(
        f"{title.lower()}-{slug(problem)}",
        f"{title}, {problem}",
        caption,
        label,
        "",
        [Series(column, list(middle), names, list(least[names]), list(most[names]))],
        kind="dots",
        spread="minimum to maximum",
        x_log=bool((least > 0).all()),  # a logarithmic axis has no 0
    )


def precision_charts(frames: Frames) -> list[Chart]:
    """Return one chart per problem of the edges that differ from the FP32 circuit."""
    study = frames.study
    if study.empty:
        return []
    charts = []
    for problem in dict.fromkeys(study["problem"]):
        rows = study[(study["problem"] == problem) & study["method"].str.contains("@")]
        if rows.empty:
            continue
        series = [
            Series(
                method,
                list(own["threshold"]),
                list(own["differing"]),
                notes=[f"Jaccard index {value:.3f}" for value in own["jaccard"]],
            )
            for method, own in rows.groupby("method", sort=False)
        ]
        charts.append(
            Chart(
                f"precision-{slug(problem)}",
                f"What a number format changes, {problem}",
                f"Edges that are in the format's circuit or in that of {EXACT} in FP32, but not both; "
                "mean over seeds. unguarded: no edge is re-decided; pahq: FP32 near the threshold.",
                "threshold",
                "differing edges",
                series,  # type: ignore[arg-type]
                x_log=True,
            )
        )
    return charts
