"""Charts for the page, drawn by plotly in the browser.

A chart is a ``<figure>`` that holds its data as JSON; `SCRIPT` draws all charts when the page is loaded.
plotly's code is embedded in the page, so that nothing is fetched.
"""

from __future__ import annotations

import html
import math
from typing import Any

from plotly.offline import get_plotlyjs

from pahq_plugin.compare.page.chart import ON_TOP, Chart, Series, style
from pahq_plugin.compare.page.readable import ABSENT, Table, number
from pahq_plugin.results.drawing.page import json_text

MOST_ROWS = 20
"""The most points of a series that its table lists."""

SCRIPT = """
for (const place of document.querySelectorAll(".chart")) {
  const drawn = JSON.parse(place.parentElement.querySelector("script").textContent);
  Plotly.newPlot(place, drawn.data, drawn.layout, {
    responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: place.id },
  });
}
"""
"""Draws every chart of the page."""


def library() -> str:
    """Return plotly's code, 4.6 MB, escaped so that it cannot end its ``<script>`` element."""
    return get_plotlyjs().replace("</script", "<\\/script")


def figure(chart: Chart) -> str:
    """Return the chart as HTML: drawing, caption, and the numbers for readers who cannot see it."""
    draw = _dots if chart.kind == "dots" else _line
    traces = [draw(series, place) for place, series in enumerate(chart.series)]
    drawn = json_text({"data": traces, "layout": _layout(chart)})
    label = html.escape(f"{chart.title}. {chart.caption}", quote=True)
    return (
        f'<figure class="plot"><div class="chart" id="{chart.ident}" role="group" aria-label="{label}">'
        f'</div><script type="application/json">{drawn}</script>'
        f"<figcaption><strong>{html.escape(chart.title)}.</strong> {html.escape(chart.caption)}"
        f"</figcaption><details><summary>The numbers</summary>{numbers(chart).html()}</details></figure>"
    )


def numbers(chart: Chart) -> Table:
    """Return a chart's points as a table, with a selection of points for long series."""
    dots = chart.kind == "dots"
    rows = []
    for series in chart.series:
        for i in _some(len(series.x)):
            ends = f"{series.low[i]:.3g} to {series.high[i]:.3g}" if series.low else ABSENT
            x, y = number(series.x[i]), series.y[i]
            rows.append([str(y), x, ends] if dots else [series.name, x, number(y), ends])
    columns = ["method", *([] if dots else [chart.x_label]), chart.x_label if dots else chart.y_label]
    return Table("", f"The numbers of: {chart.title}", "", [*columns, chart.spread], rows)


def _some(length: int) -> list[int]:
    """Return the indices of at most `MOST_ROWS` points, evenly spread, including both ends."""
    if length <= MOST_ROWS:
        return list(range(length))
    return [round(i * (length - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)]


def _line(series: Series, place: int) -> dict[str, Any]:
    look = style(series.name, place)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if len(series.x) > 30 else "lines+markers",
        "name": series.name,
        "x": list(series.x),
        "y": list(series.y),
        "line": {"color": look.color, "dash": look.dash, "width": look.width},
        "marker": {"symbol": look.marker, "size": 5 + look.width},
        "text": list(series.notes),
        "hovertemplate": "%{y:.4g} at %{x:.3g}" + ("<br>%{text}" if series.notes else ""),
        "zorder": 1 if series.name == ON_TOP else 0,
    }
    if series.step == "stairs":
        trace["line"]["shape"] = "hv"
    if series.low:
        trace["error_y"] = _errors(series.y, series.low, series.high)
    return trace


def _dots(series: Series, place: int) -> dict[str, Any]:
    looks = [style(str(name), i) for i, name in enumerate(series.y)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "name": series.name,
        "x": list(series.x),
        "y": list(series.y),
        "marker": {"color": [look.color for look in looks], "size": 10},
        "text": [number(x, 2) for x in series.x],
        "textposition": "top center",
        "hovertemplate": "%{y}: %{x:.3g}<extra></extra>",
    }
    if series.low:
        # With an explicit colour: plotly takes none from dots of different colours.
        trace["error_x"] = _errors(series.x, series.low, series.high) | {"color": "#374151"}
    return trace


def _errors(values: Any, low: Any, high: Any) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [h - v for v, h in zip(values, high, strict=True)],
        "arrayminus": [v - b for v, b in zip(values, low, strict=True)],
        "thickness": 1,
        "width": 2,
    }


def _ticks(chart: Chart) -> list[float]:
    """Return round tick values, more than powers of ten if the chart's values span few decades."""
    values = [x for series in chart.series for x in (*series.x, *series.low, *series.high)]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    return [digit * 10.0**k for k in decades for digit in ((1,) if len(decades) > 3 else (1, 2, 5))]


def _layout(chart: Chart) -> dict[str, Any]:
    shared = {"gridcolor": "#e5e7eb", "automargin": True, "tickfont": {"size": 12}}
    x: dict[str, Any] = {"title": {"text": chart.x_label}, **shared}
    y: dict[str, Any] = {"title": {"text": chart.y_label}, **shared}
    if chart.x_log:
        x |= {"type": "log", "dtick": 1, "exponentformat": "power"}
        if chart.kind == "dots":
            x |= {"tickmode": "array", "tickvals": _ticks(chart), "exponentformat": "none"}
    if chart.y_range:
        y["range"] = list(chart.y_range)
    if chart.kind == "dots":
        y |= {"autorange": "reversed", "title": {"text": ""}}
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2937"},
        "height": 380,
        "margin": {"l": 60, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "showlegend": chart.kind != "dots",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
    }
