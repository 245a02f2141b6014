"""A chart as a value, independent of the library that draws it.

`pahq_plugin.compare.page.interactive` draws charts for the page, and `pahq_plugin.compare.page.static`
for papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["lines", "dots"]
Step = Literal["straight", "stairs"]


@dataclass(frozen=True)
class Style:
    """One method's look in every chart. Dash and marker differ, too, for readers who cannot tell colours
    apart."""

    color: str
    dash: Literal["solid", "dash", "dot", "dashdot"]
    marker: Literal["circle", "square", "diamond", "x", "triangle-up", "cross"]
    width: float = 2


@dataclass(frozen=True)
class Series:
    """One method's points.

    Attributes:
        y: numbers; for dots, the names of their rows.
        low, high: ends of intervals around y (for dots: around x); empty for none.
        notes: one on each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float] | Sequence[str]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    step: Step = "straight"
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        ident: name of its files, and its id in the page.
        x_label, y_label: with units.
        series: one per method.
        kind: lines with points, or one row with a dot per method.
        spread: what the intervals are.
        y_range: range of the vertical axis; ``None`` for all data.
    """

    ident: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    kind: Kind = "lines"
    spread: str = "95 % interval"
    x_log: bool = False
    y_range: tuple[float, float] | None = None


# Okabe & Ito's palette, dark enough on white; black for FP32, the reference.
STYLES: dict[str, Style] = {
    "pahq": Style("#c2410c", "solid", "circle"),
    "acdc": Style("#111111", "dash", "x", width=6),  # visible under a curve that covers it
    "host-acdc": Style("#6b7280", "dot", "cross"),
    "pahq-paper": Style("#a16207", "dashdot", "triangle-up"),
    "rtn-q": Style("#b0186f", "dot", "square"),
    "eactp": Style("#4b5563", "solid", "diamond"),
    "eap": Style("#0063a6", "solid", "square"),
    "eap-ig": Style("#0284c7", "dash", "diamond"),
    "eap-ig-activations": Style("#155e75", "dot", "triangle-up"),
    "ig": Style("#0f766e", "dashdot", "circle"),
    "edge-probing": Style("#4d7c0f", "solid", "triangle-up"),
    "subnetwork-probing": Style("#15803d", "dash", "cross"),
    "act-mag": Style("#7c3aed", "dot", "diamond"),
    "random": Style("#9ca3af", "dash", "circle"),
    "ground-truth": Style("#be123c", "dashdot", "x"),
}
ON_TOP = "pahq"
"""The method that is drawn on top where points coincide."""

_OTHERS = (
    Style("#0063a6", "solid", "circle"),
    Style("#c2410c", "dash", "square"),
    Style("#15803d", "dot", "diamond"),
    Style("#7c3aed", "dashdot", "triangle-up"),
    Style("#b0186f", "solid", "x"),
    Style("#a16207", "dash", "cross"),
    Style("#111111", "dot", "circle"),
    Style("#0f766e", "dashdot", "square"),
    Style("#6b7280", "solid", "diamond"),
)


def style(name: str, place: int = 0) -> Style:
    """Return a method's style, by its place in the chart if `STYLES` has none for it."""
    return STYLES.get(name) or _OTHERS[place % len(_OTHERS)]
