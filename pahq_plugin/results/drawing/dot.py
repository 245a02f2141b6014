"""A circuit as a Graphviz file: ``dot -Tsvg circuit.dot``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from pahq_plugin.labels import NodeKind, ends
from pahq_plugin.results.decision import Decision, label, saved_decisions, strongest
from pahq_plugin.results.drawing.nodes import Node, layout
from pahq_plugin.results.drawing.scale import EffectScale
from pahq_plugin.results.terminal import summary

SHAPES: dict[NodeKind, str] = {
    "head": 'shape=box, style="rounded,filled", fillcolor="#ffffff"',
    "mlp": 'shape=box, style=filled, fillcolor="#eceef2"',
    "input": 'shape=invhouse, style=filled, fillcolor="#ffffff"',
    "output": 'shape=house, style=filled, fillcolor="#ffffff"',
    "other": 'shape=ellipse, style=filled, fillcolor="#ffffff"',
}

ESCAPES = {"\\": "\\\\", '"': '\\"', "&": "&amp;", "\n": "\\n", "\r": "\\r", "\0": "\ufffd"}
"""Applied in this order: backslashes first."""


def circuit_dot(record: dict[str, Any]) -> str:
    """Return the kept edges as a directed graph in DOT, input at the bottom; equal records, equal text.

    Raises:
        ResultError: the edges form a cycle.
    """
    decisions = saved_decisions(record)
    kept = strongest(decisions)
    used = {name for decision in kept for name in ends(decision.edge.name)[:2]}
    nodes = [node for node in layout(d.edge.name for d in decisions) if node.name in used]
    scale = EffectScale(decision.effect for decision in kept)
    lines = [
        "digraph circuit {",
        f"  graph [rankdir=BT, label={quoted(summary(record))}, labelloc=b];",
        '  node [fontname="Helvetica", color="#4a5160"];',
        '  edge [fontname="Helvetica", fontsize=9];',
        *(_rank(row) for _, row in groupby(nodes, key=lambda node: node.y)),
        *(_edge(decision, scale) for decision in kept),
        "}",
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Quote ``text`` as a DOT string that is shown verbatim.

    Graphviz reads ``&amp;`` as an entity and, in labels, ``\\N`` as the node's name; a NUL would end the
    file.
    """
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return f'"{text}"'


def _rank(row: Iterable[Node]) -> str:
    """Return the DOT statement that puts the nodes of one row at one height."""
    names = [(quoted(node.name), SHAPES[node.kind]) for node in row]
    members = " ".join(f"{name} [label={name}, {shape}];" for name, shape in names)
    return f"  {{ rank=same; {members} }}"


def _edge(decision: Decision, scale: EffectScale) -> str:
    source, destination, slot = ends(decision.edge.name)
    position = "" if decision.edge.seq_idx is None else f"@{decision.edge.seq_idx}"
    effect = decision.effect
    looks = [
        f"label={quoted(' '.join(filter(None, (slot, position))))}",
        f"tooltip={quoted(f'{label(decision)}: {effect:.3g}')}",
        f'color="{scale.colour(effect)}"',
        f"penwidth={scale.width(effect):g}",
        *(["style=dashed"] if effect < 0 else []),
    ]
    return f"  {quoted(source)} -> {quoted(destination)} [{', '.join(looks)}];"
