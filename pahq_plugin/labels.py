"""Parse edge labels into nodes.

Results store labels such as ``"A0.1->A1.3.Q"``, so nothing here needs a model. Queries, keys and
values are inputs of one head node.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Protocol

NodeKind = Literal["head", "mlp", "input", "output", "other"]

INPUT, OUTPUT = "Resid Start", "Resid End"
NUMBER = r"[0-9]{1,6}"
"""Index of a block or head; longer digit strings are treated as part of a name."""

HEAD = re.compile(rf"A({NUMBER})\.({NUMBER})")
MLP = re.compile(rf"MLP ({NUMBER})")
DESTINATION = re.compile(rf"(A{NUMBER}\.{NUMBER})\.([QKV])")


class Named(Protocol):
    """Anything with an edge's name and position: a host edge, or one read from a file."""

    @property
    def name(self) -> str: ...
    @property
    def seq_idx(self) -> int | None: ...


def edge_label(edge: Named) -> str:
    """Return an edge's name, with its position in a position-wise graph: ``"A0.1->MLP 2 @3"``."""
    return edge.name if edge.seq_idx is None else f"{edge.name} @{edge.seq_idx}"


class Ends(NamedTuple):
    """Source and destination node of an edge; ``slot`` is Q, K or V if the head splits its inputs."""

    source: str
    destination: str
    slot: str | None


def ends(label: str) -> Ends:
    """Split a label such as ``"A0.1->A1.3.Q"`` into source node, destination node and slot."""
    source, _, destination = label.partition("->")
    match = DESTINATION.fullmatch(destination)
    return Ends(source, match[1], match[2]) if match else Ends(source, destination, None)


def kind_of(name: str) -> NodeKind:
    """Return the kind of the node with this name; ``"other"`` outside transformers."""
    if HEAD.fullmatch(name):
        return "head"
    if MLP.fullmatch(name):
        return "mlp"
    return "input" if name == INPUT else "output" if name == OUTPUT else "other"


def block_of(name: str) -> int | None:
    """Return the block index of a head or MLP node, ``None`` for other nodes."""
    match = HEAD.fullmatch(name) or MLP.fullmatch(name)
    return int(match[1]) if match else None
