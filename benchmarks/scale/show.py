"""The figures as tables in a terminal and as a drawing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale.measure import METHODS

Row = dict[str, Any]
UNITS = (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60))
COLOURS = dict(zip(METHODS, ("tab:blue", "tab:orange"), strict=True))


def duration(seconds: float) -> str:
    """In the largest unit of which it is at least two."""
    for name, size in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.2f} s"


def size(count: float) -> str:
    """Bytes in a binary unit."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def print_all(results: Row) -> None:
    """Tables of what is measured and of what is predicted."""
    console = Console(width=140)
    console.print(measured_table(results["rows"]))
    for row in results["ranks"]:
        console.print(
            f"measured: {row['method']}, {row['processes']} process(es) on {row['cpus']} CPU(s): "
            f"{row['seconds']['median']:.2f} s, CPU time of each "
            + ", ".join(f"{s:.2f} s" for s in row["cpu_seconds"])
        )
    for method, model in results["models"].items():
        console.print(f"{method}: {describe(model)}")
    if results["predictions"]:
        console.print(prediction_table(results["predictions"]))
        console.print(f"Predictions assume {results['predictions'][0]['assumes']}.")


def describe(model: Row) -> str:
    """The fit's errors in a sentence."""
    median, worst = model["off_median"], max(model["off_by_axis_left_out"].values(), default=math.nan)
    ratios = model["predicted_over_measured"].items()
    return (
        f"where an axis was left out, the fit is off by a factor of {median or math.nan:.2f} (median), "
        f"{worst:.2f} (worst); given what was counted, by {model['time_from_counts']['median']:.2f}; "
        "predicted over measured, seen by no fit: "
        + ", ".join(f"{name} {ratio or math.nan:.2f}" for name, ratio in ratios)
        + "".join(
            f", {name} (an earlier run) {ratio:.2f}"
            for name, ratio in model["earlier_runs"].get("far", {}).items()
        )
    )


def measured_table(rows: list[Row]) -> Table:
    """One line for each shape."""
    table = Table(title="Measured")
    for column in ("axis", "shape", "edges", "kept", "forward ms"):
        table.add_column(column, justify="left" if column in ("axis", "shape") else "right")
    for method in METHODS:
        table.add_column(f"{method}: CPU s", justify="right")
        table.add_column("MiB", justify="right")
    for row in rows:
        cells = []
        for method in METHODS:
            one = row["methods"][method]
            seconds = one["cpu_seconds"]
            cells += [f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"]
            cells += [f"{one['memory_above'] / 2**20:.0f}"]
        table.add_row(
            row["axis"], row["shape"]["name"], f"{row['edges']:,}", str(row["kept"]),
            f"{1e3 * row['plain_forward']['median']:.1f}", *cells,
        )  # fmt: skip
    return table


def prediction_table(rows: list[Row]) -> Table:
    """One line for each prediction."""
    table = Table(title="Predictions, not measurements")
    columns = ("prediction for", "method", "processes", "edges", "kept", "time of each", "interval",
               "at most", "memory", "beyond measured: edges, parameters")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in rows:
        alone = row["processes"] == 1
        table.add_row(
            row["name"], row["method"], str(row["processes"]), f"{row['edges']:,}",
            f"{100 * row['kept_share']:.2f} %", duration(row["cpu_seconds"]),
            " to ".join(map(duration, row["interval"])),
            duration(row["whole_model_for_each_edge_cpu_seconds"]) if alone else "",
            size(row["memory"]["bytes"]) if alone else "",
            f"{row['beyond']['edges']:,.0f}x, {row['beyond']['parameters']:,.0f}x",
        )  # fmt: skip
    return table


def draw(path: Path, results: Row) -> None:
    """Seconds against edges, measured and predicted; and what each axis does to them."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for method in METHODS:
        colour = COLOURS[method]
        for row in results["rows"]:
            left.scatter(row["edges"], _seconds(row, method), color=colour, s=18)
        for row in results["predictions"]:
            if row["method"] == method and row["processes"] == 1:
                low, high = row["interval"]
                left.plot([row["edges"]] * 2, [low, high], color=colour, linewidth=1)
                left.scatter(
                    row["edges"], row["cpu_seconds"], marker="s", facecolor="none", edgecolor=colour
                )
                if method == METHODS[0]:
                    left.annotate(
                        f"{row['name']}\n(prediction)", (row["edges"], row["cpu_seconds"]), (-4, -32),
                        textcoords="offset points", ha="right", fontsize=7,
                    )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="edges", ylabel="CPU seconds, one thread")
    left.set_title("dots: measured; squares: predictions (acdc blue, pahq orange)", fontsize=8)
    _draw_axes(right, results["rows"])
    figure.savefig(path, metadata={"Date": None})


def _seconds(row: Row, method: str) -> float:
    return row["methods"][method]["cpu_seconds"]["median"]


def _draw_axes(axes: Any, rows: list[Row]) -> None:
    """Seconds of ``acdc`` over those of the base against the value of each axis over the base's."""
    base = next(row for row in rows if row["axis"] == "base")
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [
            (row["value"] / _value(base, axis), _seconds(row, "acdc") / _seconds(base, "acdc"))
            for row in rows
            if row["axis"] == axis and not isinstance(row["value"], str)
        ]
        if points:
            points.append((1.0, 1.0))
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=axis)
    axes.set(
        xscale="log", yscale="log", xlabel="value over that of the base", ylabel="acdc: time over base"
    )
    axes.set_title("measured, one axis at a time", fontsize=8)
    axes.set_xticks([0.25, 0.5, 1, 2, 4], minor=False)
    axes.set_yticks([0.25, 0.5, 1, 2, 4], minor=False)
    for one in (axes.xaxis, axes.yaxis):
        one.set_major_formatter("{x:g}")
        one.set_minor_formatter("")
    axes.legend(fontsize=7)


def _value(base: Row, axis: str) -> float:
    return base["per_node"] if axis == "kept" else base["shape"][axis]
