"""The decision on one edge: what a search takes, files hold and views show. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pahq_plugin.errors import printable
from pahq_plugin.labels import edge_label

if TYPE_CHECKING:
    from pahq_plugin.host import Edge


class SavedEdge(NamedTuple):
    """An edge of a saved result, read without its model."""

    name: str
    seq_idx: int | None


@dataclass(frozen=True)
class Decision:
    """The decision on one edge.

    Attributes:
        edge: the host's edge; a `SavedEdge` in decisions that `saved_decisions` reads.
        effect: change of the loss when the edge is patched, signed, in units of the metric. For a
            method that scores edges: the score.
        kept: whether the edge is in the circuit.
        exact: whether the effect was measured in FP32 (or the model's wider dtype).
    """

    edge: Edge
    effect: float
    kept: bool
    exact: bool


def saved_decisions(record: Mapping[str, Any]) -> list[Decision]:
    """Return the decisions of a checked ``result.json``, in the order taken."""
    return [
        Decision(cast("Edge", SavedEdge(e["edge"], e["seq_idx"])), e["effect"], e["kept"], e["exact"])
        for e in record["decisions"]
    ]


def saved_edge(edge: Edge) -> SavedEdge:
    """Return an edge as files name it; edges of two loads of one model are equal so."""
    return SavedEdge(edge.name, edge.seq_idx)


def entry(decision: Decision) -> dict[str, Any]:
    """Return a decision as ``result.json`` holds it."""
    return {
        "edge": decision.edge.name,
        "seq_idx": decision.edge.seq_idx,
        "effect": decision.effect,
        "kept": decision.kept,
        "exact": decision.exact,
    }


def strongest(decisions: Iterable[Decision]) -> list[Decision]:
    """Return the kept decisions, the largest effect (or score) by magnitude first."""
    kept = [decision for decision in decisions if decision.kept]
    return sorted(kept, key=lambda decision: (-abs(decision.effect), edge_label(decision.edge)))


def label(decision: Decision) -> str:
    """Return the edge's name for readers, with its position if it has one."""
    return printable(edge_label(decision.edge))
