"""The charts of a comparison, made from its tables.

A curve's points are means over the seeds, per threshold for searches and per share of the edges for
rankings; intervals are 95 %, over held-out prompts and seeds.
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

    Attributes:
        searches, costs, circuits: tidy tables.
        summary: one row per problem and method.
        points: circuits at each threshold with intervals, ``at_threshold`` of every one.
        study: what precision changes.
    """

    searches: pd.DataFrame
    costs: pd.DataFrame
    circuits: pd.DataFrame
    summary: pd.DataFrame
    points: pd.DataFrame
    study: pd.DataFrame


def problem_charts(problem: str, material: Material, frames: Frames) -> list[Chart]:
    """All charts of one problem, those first that say most."""
    charts = [faithfulness_chart(problem, behaviour, frames) for behaviour in BEHAVIOUR_NAMES]
    charts += [roc_chart(problem, material), time_chart(problem, frames), memory_chart(problem, frames)]
    return [chart for chart in charts if chart is not None]


def plain(methods: Iterable[str]) -> list[str]:
    """Methods without those of the precision study, each once."""
    return [name for name in dict.fromkeys(methods) if "@" not in name]


def roc_chart(problem: str, material: Material) -> Chart | None:
    """Rates against the official circuit, of each method's first seed; ``None`` where none is known."""
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
        "Rates of edges wrongly and rightly kept. A search is a staircase through its circuits, one "
        "per threshold, the pessimistic curve of the ACDC paper; a ranking has every cut-off. "
        "First seed of each method.",
        "false positive rate",
        "true positive rate",
        series,
        y_range=(0.0, 1.05),
    )


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that raise the true positive rate, so that a staircase never falls."""
    best, kept = -1.0, []
    for x, y in sorted(points):
        if y > best:
            kept.append((x, y))
            best = y
    return kept


def faithfulness_chart(problem: str, behaviour: str, frames: Frames) -> Chart | None:
    """Faithfulness against share of edges; ``None`` where it was not measured.

    A ranking is drawn at the shares that all seeds have in common, each point their mean: of ties it may
    be cut at another size for each seed.
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
    metric = rows["metric"].iloc[0]
    shown = metric if behaviour == "loss" else "logit difference"
    return Chart(
        f"faithfulness-{behaviour.replace('_', '-')}-{slug(problem)}",
        f"Faithfulness against size, {problem}, {'minus ' if behaviour == 'loss' else ''}{shown}",
        "0: as with every edge patched; 1: as the whole model. Held-out prompts; searches with 95 % "
        "intervals over prompts and seeds. Where circuits are the same, one curve lies on the other. "
        + (
            "This is what searches keep low."
            if behaviour == "loss"
            else "This is what attribution estimates, and what MIB measures."
        ),
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
    """From 0 to 1 at least; a method that does harm is cut off at -0.5, one that overshoots at 1.5."""
    values = [float(y) for one in series for y in (*one.y, *one.low, *one.high)]  # type: ignore[arg-type]
    return max(-0.5, min(0.0, *values)) - 0.05, min(1.5, max(1.0, *values)) + 0.05


def time_chart(problem: str, frames: Frames) -> Chart | None:
    """Seconds per run of each method; ``None`` where none was run."""
    return _cost_chart(
        problem, frames, "seconds", "Time", "seconds for one run",
        "Median over thresholds and seeds, least to most. A search is one threshold. Processes may have "
        "run side by side: read ratios.",
    )  # fmt: skip


def memory_chart(problem: str, frames: Frames) -> Chart | None:
    """Memory of each method above the loaded model; ``None`` where none was run."""
    return _cost_chart(
        problem, frames, "extra_mib", "Memory", "MiB above the loaded model",
        "Peak resident memory of the method's own process, less what it was before the run. Median over "
        "thresholds and seeds, least to most.",
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
        [
            Series(
                column,
                list(middle),
                names,
                [least[name] for name in names],
                [most[name] for name in names],
            )
        ],
        kind="dots",
        spread="least to most",
        x_log=bool((least > 0).all()),  # a logarithmic axis has no 0
    )


def precision_charts(frames: Frames) -> list[Chart]:
    """What precision changes: edges that differ from the FP32 circuit, one chart per problem."""
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
                f"Edges that only the format's circuit or only that of {EXACT} in FP32 keeps, mean over "
                "seeds. unguarded: decided on what was screened; pahq: near the threshold in FP32.",
                "threshold",
                "differing edges",
                series,  # type: ignore[arg-type]
                x_log=True,
            )
        )
    return charts
