"""The nodes behind edge labels.

Results hold labels such as ``"A0.1->A1.3.Q"``, so that nothing here needs a model. Queries, keys and
values are inputs of one head node.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Protocol

NodeKind = Literal["head", "mlp", "input", "output", "other"]

INPUT, OUTPUT = "Resid Start", "Resid End"
NUMBER = r"[0-9]{1,6}"
"""Indices of blocks and heads; a longer one is part of a name like any other."""

HEAD = re.compile(rf"A({NUMBER})\.({NUMBER})")
MLP = re.compile(rf"MLP ({NUMBER})")
DESTINATION = re.compile(rf"(A{NUMBER}\.{NUMBER})\.([QKV])")


class Named(Protocol):
    """What an edge is called by: one of the host's, or of a file."""

    @property
    def name(self) -> str: ...
    @property
    def seq_idx(self) -> int | None: ...


def edge_label(edge: Named) -> str:
    """Name of an edge, with its position in a position-wise graph: ``"A0.1->MLP 2 @3"``."""
    return edge.name if edge.seq_idx is None else f"{edge.name} @{edge.seq_idx}"


class Ends(NamedTuple):
    """Where an edge starts and ends; ``slot`` is Q, K or V where the head's inputs are separate."""

    source: str
    destination: str
    slot: str | None


def ends(label: str) -> Ends:
    """``"A0.1->A1.3.Q"`` as source node, destination node and slot."""
    source, _, destination = label.partition("->")
    match = DESTINATION.fullmatch(destination)
    return Ends(source, match[1], match[2]) if match else Ends(source, destination, None)


def kind_of(name: str) -> NodeKind:
    """What part of a transformer has that name; ``"other"`` for names of other models."""
    if HEAD.fullmatch(name):
        return "head"
    if MLP.fullmatch(name):
        return "mlp"
    return "input" if name == INPUT else "output" if name == OUTPUT else "other"


def block_of(name: str) -> int | None:
    """Index of the transformer block that holds a head or an MLP."""
    match = HEAD.fullmatch(name) or MLP.fullmatch(name)
    return int(match[1]) if match else None
