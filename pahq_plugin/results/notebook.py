"""A result as HTML in a notebook: a summary, its strongest edges with bars, its cost.

Notebooks tell a page their theme in different ways. Text therefore inherits the notebook's colour, and
everything else is translucent or a hue readable on white and on black. No scripts, no network.
"""

from __future__ import annotations

import html
from typing import Any

from pahq_plugin.results.decision import Decision, label, saved_decisions, strongest
from pahq_plugin.results.terminal import busiest, cost, loss_line, summary

CSS = """
.pahq-result { color: inherit; font-family: system-ui, sans-serif; font-size: 13px; max-width: 60em }
.pahq-result p { margin: 0.3em 0 }
.pahq-result table { border-collapse: collapse; margin: 0.4em 0; color: inherit; background: none }
.pahq-result caption { text-align: left; caption-side: top; color: inherit; padding: 0.2em 0 }
.pahq-result th, .pahq-result td { padding: 0.15em 0.7em; color: inherit; background: none;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.35); text-align: left }
.pahq-result .number { text-align: right; font-variant-numeric: tabular-nums }
.pahq-result .bar { display: block; height: 0.8em; min-width: 1px; background: #4f8fc4 }
.pahq-result .bar.negative { background: #cc7f36 }
.pahq-result .track { display: block; width: 12em }
.pahq-result .edge { white-space: nowrap }
.pahq-result .quiet { opacity: 0.75 }
"""


def result_html(record: dict[str, Any], stats: dict[str, Any], top: int) -> str:
    """Return a result as HTML, with the figures of `pahq_plugin.results.terminal.record_view`."""
    kept = strongest(saved_decisions(record))
    lines = [f"<p><strong>{html.escape(summary(record))}</strong></p>"]
    if kept and top:
        scored = bool(record["settings"].get("scored"))
        lines += [_table(kept, top, scored), f"<p>Busiest nodes: {html.escape(busiest(kept))}</p>"]
    if rise := loss_line(record):
        lines.append(f"<p>{html.escape(rise)}</p>")
    if spent := cost(stats):
        lines.append(f'<p class="quiet pahq-cost">{html.escape(spent)}</p>')
    return framed("\n".join(lines))


def framed(body: str) -> str:
    """Wrap HTML in the styles that all results share."""
    return f'<div class="pahq-result"><style>{CSS}</style>\n{body}\n</div>'


def table(caption: str, columns: list[str], rows: list[list[str]], numbers: set[int]) -> str:
    """Return a table of HTML texts; the columns with an index in ``numbers`` are aligned right."""

    def row(tag: str, cells: list[str], scope: str = "") -> str:
        kinds = [' class="number"' if place in numbers else "" for place in range(len(cells))]
        return "".join(f"<{tag}{scope}{kind}>{c}</{tag}>" for kind, c in zip(kinds, cells, strict=True))

    head = row("th", columns, ' scope="col"')
    body = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return (
        f"<table><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _table(kept: list[Decision], top: int, scored: bool) -> str:
    largest = abs(kept[0].effect) or 1.0
    rows = []
    for rank, decision in enumerate(kept[:top], start=1):
        sign = " negative" if decision.effect < 0 else ""
        width = 100 * abs(decision.effect) / largest
        bar = f'<span class="track"><span class="bar{sign}" style="width: {width:.1f}%"></span></span>'
        name = f'<span class="edge">{html.escape(label(decision))}</span>'
        row = [str(rank), name, f"{decision.effect:.3g}", bar]
        rows.append(row if scored else [*row, "FP32" if decision.exact else "screened"])
    columns = ["#", "edge", "score" if scored else "effect", "", "decided on"]
    caption = f"Strongest {len(rows)} of {len(kept):,} kept edges"
    return table(caption, columns[: 4 if scored else 5], rows, {0, 2})
