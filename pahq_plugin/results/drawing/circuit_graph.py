"""The interactive drawing of a circuit: its data, a fragment to embed, and a stand-alone page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from string import Template
from typing import Any

from pahq_plugin.labels import ends
from pahq_plugin.results.decision import Decision, label, saved_decisions, strongest
from pahq_plugin.results.drawing.nodes import layout
from pahq_plugin.results.drawing.page import asset, json_text, page, scripts
from pahq_plugin.results.drawing.scale import EffectScale
from pahq_plugin.results.terminal import summary

SCRIPTS = (
    "elements.js", "circuits.js", "tooltip.js", "picture.js", "camera.js", "navigation.js",
    "edge_table.js", "legend.js", "save.js", "viewer.js",
)  # fmt: skip
"""The viewer's scripts; each uses only earlier ones."""


def circuit_data(record: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """Return what the viewer draws of a checked ``result.json``, as JSON values.

    In a list of several circuits, this one has the given name; by default its method and threshold.

    Raises:
        ResultError: the edges form a cycle.
    """
    settings, decisions = record["settings"], saved_decisions(record)
    kept = strongest(decisions)
    scale = EffectScale(decision.effect for decision in kept)
    negative = any(decision.effect < 0 for decision in kept)
    return {
        "name": name or default_name(record),
        "subtitle": summary(record),
        "model": record["model"]["name"],
        "measure": "score" if settings.get("scored") else "effect",
        "nodes": [asdict(node) for node in layout(decision.edge.name for decision in decisions)],
        "edges": _merged(kept, scale),
        "legend": [_look(size, scale) for size in scale.samples()],
        "negative": [_look(-size, scale) for size in scale.samples()] if negative else [],
    }


def default_name(record: dict[str, Any]) -> str:
    """Return the method, and the threshold or the number of kept edges."""
    settings = record["settings"]
    if settings.get("scored"):
        kept = sum(entry["kept"] for entry in record["decisions"])
        return f"{settings['method']}, {kept:,} edges"
    return f"{settings['method']}, threshold {settings['threshold']:g}"


def _merged(kept: Sequence[Decision], scale: EffectScale) -> list[dict[str, Any]]:
    """Merge edges between the same two nodes into one with several parts, strongest first."""
    merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for decision in kept:
        source, destination, slot = ends(decision.edge.name)
        part = {
            "label": label(decision),
            "slot": slot,
            "position": decision.edge.seq_idx,
            "exact": decision.exact,
            **_look(decision.effect, scale),
        }
        merged.setdefault((source, destination), []).append(part)
    return [
        {"source": source, "destination": destination, "parts": parts}
        for (source, destination), parts in merged.items()
    ]


def _look(effect: float, scale: EffectScale) -> dict[str, Any]:
    return {"effect": effect, "colour": scale.colour(effect), "width": scale.width(effect)}


def viewer(circuits: Sequence[dict[str, Any]], ident: str, *, compare: bool = False) -> str:
    """Return the markup of one viewer, for a page with `viewer_assets` and the style of ``page.css``.

    Args:
        circuits: from `circuit_data`; the first one is shown first.
        ident: prefix of the element ids, so that a page can hold several viewers.
        compare: whether to start with the first two circuits side by side.
    """
    data = json_text({"circuits": list(circuits), "compare": compare})
    return Template(asset("viewer.html")).substitute(ident=html.escape(ident), data=data)


def viewer_assets() -> tuple[str, str]:
    """Return the style and script that all viewers on a page share; the script goes after them."""
    return asset("viewer.css"), scripts(SCRIPTS)


def graph_page(circuits: Sequence[dict[str, Any]], title: str, *, compare: bool = False) -> str:
    """Return a self-contained page with one viewer."""
    css, js = viewer_assets()
    return page(title, viewer(circuits, "circuit", compare=compare), css=css, js=js)
