"""Layout of a drawing: the position of each node.

Positions depend on all edges of a model, kept or not. A head is therefore at the same place in every
circuit of that model, and two drawings can be compared side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from pahq_plugin.errors import ResultError
from pahq_plugin.labels import HEAD, INPUT, Ends, NodeKind, block_of, ends, kind_of

ROW_HEIGHT = 74
NODE_GAP = 24
LONGEST_LABEL = 18
LETTER_WIDTH = 8
LEAST_WIDTH: dict[NodeKind, int] = {"head": 50, "mlp": 74, "input": 106, "output": 98, "other": 50}


@dataclass(frozen=True)
class Node:
    """A node with its centre (y grows downwards) and a width that fits its label, in pixels."""

    name: str
    label: str
    kind: NodeKind
    block: int | None
    x: float
    y: float
    width: int


def layout(labels: Iterable[str]) -> list[Node]:
    """Place the nodes of a model's edges; returns them from the input up and from left to right.

    Raises:
        ResultError: the edges form a cycle.
    """
    edges = [ends(label) for label in labels]
    names = list(dict.fromkeys(name for edge in edges for name in edge[:2]))
    if all(kind_of(name) != "other" for name in names):
        return _transformer(names)
    return _layered(names, edges)


def _transformer(names: Sequence[str]) -> list[Node]:
    """Place each block as a row of heads (one column per head index) with its MLP in a row above."""
    heads = [tuple(map(int, match.groups())) for name in names if (match := HEAD.fullmatch(name))]
    blocks = [block for name in names if (block := block_of(name)) is not None]
    columns = 1 + max((head for _, head in heads), default=0)
    top = 2 * (1 + max(blocks, default=-1)) + 1
    pitch = max((_width(name) for name in names if HEAD.fullmatch(name)), default=0) + NODE_GAP

    lane = 0.0 if columns % 2 == 0 else pitch / 2  # between two columns, clear of the heads

    def place(name: str) -> tuple[int, float]:
        block = block_of(name)
        if block is None:
            return (0 if name == INPUT else top), lane
        match = HEAD.fullmatch(name)
        if match is None:
            return 2 * block + 2, lane
        return 2 * block + 1, (int(match[2]) - (columns - 1) / 2) * pitch

    return _placed({name: place(name) for name in names})


def _layered(names: Sequence[str], edges: Sequence[Ends]) -> list[Node]:
    """Place each node above its sources: its row is the length of the longest path from an input."""
    reads: dict[str, set[str]] = {name: set() for name in names}
    for edge in edges:
        reads[edge.destination].add(edge.source)
    row: dict[str, int] = {}
    try:
        for name in TopologicalSorter(reads).static_order():
            row[name] = 1 + max((row[source] for source in reads[name]), default=-1)
    except CycleError as error:
        raise ResultError(f"the edges form a cycle: {' -> '.join(error.args[1])}") from None
    rows: dict[int, list[str]] = {}
    for name in sorted(names, key=natural_order):
        rows.setdefault(row[name], []).append(name)
    pitch = max(map(_width, names), default=0) + NODE_GAP
    return _placed({
        name: (height, (column - (len(members) - 1) / 2) * pitch)
        for height, members in rows.items()
        for column, name in enumerate(members)
    })  # fmt: skip


def _placed(places: dict[str, tuple[int, float]]) -> list[Node]:
    """Make nodes from name -> (row counted upwards, x)."""
    order = sorted(places, key=lambda name: (*places[name], natural_order(name)))
    return [
        Node(name, _shortened(name), kind_of(name), block_of(name),
             places[name][1], -ROW_HEIGHT * places[name][0], _width(name))
        for name in order
    ]  # fmt: skip


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``B2`` before ``B10``."""
    pieces = re.split(r"([0-9]{1,4000})", name)
    return [(1, int(piece), "") if i % 2 else (0, 0, piece) for i, piece in enumerate(pieces)]


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


def _width(name: str) -> int:
    return max(LEAST_WIDTH[kind_of(name)], LETTER_WIDTH * len(_shortened(name)) + 16)
