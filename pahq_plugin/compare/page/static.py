"""Charts as files for papers: PNG and SVG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pahq_plugin.compare.page.chart import ON_TOP, Chart, Series, style
from pahq_plugin.compare.page.readable import number
from pahq_plugin.system.files import written_whole

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "x": "x", "triangle-up": "^", "cross": "+"}
SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pahq",  # equal charts give equal bytes
}


def write_chart(chart: Chart, folder: Path) -> list[Path]:
    """Draw a chart into ``IDENT.png`` and ``IDENT.svg``; returns both paths."""
    with rc_context(SETTINGS):
        figure = draw(chart)
        files = [folder / f"{chart.ident}.{suffix}" for suffix in ("png", "svg")]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            with written_whole(file) as temporary:
                figure.savefig(temporary, metadata=metadata, format=file.suffix[1:])
    return files


def draw(chart: Chart) -> Figure:
    """Draw the chart as a matplotlib figure."""
    figure = Figure(figsize=(6.4, 4.0), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, series in enumerate(chart.series):
        (_dots if chart.kind == "dots" else _line)(axes, series, place)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    if chart.kind == "dots":
        axes.invert_yaxis()
        axes.margins(y=0.12)
    else:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _as_written(axes)
    return figure


def _as_written(axes: Any) -> None:
    """Turn off formulas in text that may hold the name of a file; numeric tick labels need them."""
    legend = axes.get_legend()
    names = axes.get_yticklabels() if axes.yaxis.get_units() is not None else []  # of methods
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *names]
    for text in [*texts, *(legend.get_texts() if legend else [])]:
        text.set_parse_math(False)


def _line(axes: Any, series: Series, place: int) -> None:
    look = style(series.name, place)
    drawn: dict[str, Any] = {
        "color": look.color,
        "linestyle": DASHES[look.dash],
        "linewidth": 0.7 * look.width,
        "marker": None if len(series.x) > 30 else MARKERS[look.marker],
        "markersize": 3 + look.width / 2,
        "label": series.name,
        "zorder": 3 if series.name == ON_TOP else 2,
    }
    if series.step == "stairs":
        axes.step(series.x, series.y, where="post", **drawn)
    else:
        axes.plot(series.x, series.y, **drawn)
    if series.low:
        axes.fill_between(series.x, series.low, series.high, color=look.color, alpha=0.12, linewidth=0)


def _dots(axes: Any, series: Series, place: int) -> None:
    for i, (x, name) in enumerate(zip(series.x, series.y, strict=True)):
        color = style(str(name), i).color
        errors = [[x - series.low[i]], [series.high[i] - x]] if series.low else None
        axes.errorbar([x], [name], xerr=errors, fmt="o", color=color, capsize=2)
        axes.annotate(
            number(x, 2), (x, name), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
        )
