"""The report as one self-contained HTML page.

In order: findings, in sentences; what was compared and left out; each problem with its charts, tables
and circuits; the effect of precision; definitions.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pahq_plugin.compare.page import interactive
from pahq_plugin.compare.page import readable as shown
from pahq_plugin.compare.page.charts import Frames, plain, precision_charts, problem_charts
from pahq_plugin.compare.page.definitions import DEFINITIONS
from pahq_plugin.compare.page.sentences import findings
from pahq_plugin.compare.plan import Plan, slug
from pahq_plugin.compare.tables import Finding, Material
from pahq_plugin.results.decision import entry, saved_edge
from pahq_plugin.results.drawing.circuit_graph import circuit_data, viewer, viewer_assets
from pahq_plugin.results.drawing.page import asset, page


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        left_out: sentences on what was reduced, refused or failed.
        facts: (name, value) of what the figures depend on: machine, versions, processes.
    """

    plan: Plan
    material: Material
    frames: Frames
    left_out: Sequence[str]
    facts: Sequence[tuple[str, str]]

    @property
    def problems(self) -> list[str]:
        """Labels of the problems, in the order of the plan."""
        return list(dict.fromkeys(self.frames.searches["problem"]))


def comparison_page(report: Report) -> str:
    """Return the whole page as HTML."""
    css, script = viewer_assets()
    return page(
        report.plan.title,
        _navigation(report) + _body(report),
        css=css + asset("report.css"),
        js=interactive.library() + interactive.SCRIPT + script,
    )


def _navigation(report: Report) -> str:
    links = [("found", "What was found"), ("compared", "What was compared")]
    links += [(slug(problem), problem) for problem in report.problems]
    links += [("precision", "Precision")] if not report.frames.study.empty else []
    links += [("definitions", "Definitions")]
    items = "".join(f'<li><a href="#{ident}">{html.escape(name)}</a></li>' for ident, name in links)
    return f'<nav class="sections" aria-label="Sections"><ul>{items}</ul></nav>'


def _body(report: Report) -> str:
    across = shown.across(report.frames).html()
    sections = [
        _section("found", "What was found", _list(findings(report.frames)) + across),
        _section("compared", "What was compared", _compared(report)),
        *(_problem(problem, report) for problem in report.problems),
        _precision(report),
        _section("definitions", "Definitions", _definitions()),
    ]
    return "\n".join(filter(None, sections))


def _section(ident: str, title: str, content: str) -> str:
    heading = f'<h2 id="{ident}-title">{html.escape(title)}</h2>'
    opening = f'<section class="report-section" id="{ident}" aria-labelledby="{ident}-title">'
    return f"{opening}{heading}{content}</section>"


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else "<p>Nothing.</p>"


def _compared(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in report.facts
    )
    note = f"<p>{html.escape(report.plan.note)}</p>" if report.plan.note else ""
    left_out = "<h3>Reduced or left out</h3>" + note + _list(report.left_out)
    return f'<dl class="facts">{facts}</dl>{left_out if note or report.left_out else ""}'


def _problem(problem: str, report: Report) -> str:
    frames = report.frames
    charts = "".join(map(interactive.figure, problem_charts(problem, report.material, frames)))
    threshold = reference_threshold(problem, report)
    content = f'<div class="plots">{charts}</div>' + shown.overview(problem, frames).html()
    if threshold is not None:
        content += shown.circuits_at(problem, threshold, frames).html()
        circuits = circuits_to_show(problem, threshold, report.material)
        content += f"<h3>Circuits at {threshold:g}</h3>" + viewer(circuits, f"graph-{slug(problem)}")
    return _section(slug(problem), problem, content)


def reference_threshold(problem: str, report: Report) -> float | None:
    """Return the middle threshold at which circuits were judged, without the precision study; ``None``
    if there is none."""
    points = report.frames.points
    own = points[(points["problem"] == problem) & points["method"].isin(plain(points["method"]))]
    values = sorted(set(own["threshold"]))
    return values[(len(values) - 1) // 2] if values else None


def circuits_to_show(problem: str, threshold: float, material: Material) -> list[dict[str, Any]]:
    """Return one circuit per method, from its first seed. Rankings are cut at the size of the FP32
    circuit, and left out if there is none."""
    own = [f for f in material.findings if f.search.problem.label == problem]
    names = plain(finding.search.method for finding in own)
    chosen: dict[str, Finding] = {}
    for finding in sorted(own, key=lambda finding: finding.search.seed):
        search = finding.search
        there = material.exact_for(replace(search, threshold=threshold)) is not None
        if search.threshold == threshold or (search.threshold is None and there):
            chosen.setdefault(search.method, finding)
    return [
        circuit_data(_cut(chosen[method], threshold, material)) for method in names if method in chosen
    ]


def _cut(finding: Finding, threshold: float, material: Material) -> dict[str, Any]:
    """Return a search's record unchanged; in a ranking's, mark as kept the edges that were judged."""
    record = dict(finding.record)
    kept = material.cut_at(finding, threshold)
    if kept is not None:
        record["decisions"] = [
            entry(replace(d, kept=saved_edge(d.edge) in kept)) for d in finding.decisions
        ]
    return record


def _precision(report: Report) -> str:
    if report.frames.study.empty:
        return ""
    charts = "".join(map(interactive.figure, precision_charts(report.frames)))
    tables = "".join(
        f"<details><summary>{html.escape(problem)}, by threshold</summary>"
        f"{shown.study(report.frames, problem).html()}</details>"
        for problem in report.problems
        if (report.frames.study["problem"] == problem).any()
    )
    content = shown.study(report.frames).html() + f'<div class="plots">{charts}</div>' + tables
    return _section("precision", "What precision changes", content)


def _definitions() -> str:
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}"
        + (f' <span class="source">{html.escape(source)}.</span>' if source else "")
        + "</dd></div>"
        for name, text, source in DEFINITIONS
    )
    return f'<dl class="definitions">{items}</dl>'
