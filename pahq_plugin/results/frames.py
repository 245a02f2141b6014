"""Decisions as a pandas table and as a networkx graph; both packages are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pahq_plugin.labels import HEAD, block_of, ends, kind_of
from pahq_plugin.results.decision import Decision, entry, label

if TYPE_CHECKING:
    import networkx
    import pandas

COLUMNS = ("edge", "src", "dest", "seq_idx", "effect", "kept", "exact", "score")


def data_frame(decisions: Sequence[Decision], scores: Sequence[float]) -> pandas.DataFrame:
    """Return one row per edge, in the order decided, with its prune score.

    ``seq_idx`` is NA for edges without a position.
    """
    import pandas as pd

    rows = []
    for decision, score in zip(decisions, scores, strict=True):
        src, _, dest = decision.edge.name.partition("->")
        rows.append({**entry(decision), "src": src, "dest": dest, "score": score})
    frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    kinds = {"seq_idx": "Int64", "effect": float, "kept": bool, "exact": bool, "score": float}
    return frame.astype(kinds).rename_axis("order")


def node_graph(
    decisions: Sequence[Decision], scores: Sequence[float], settings: Mapping[str, Any], whole: bool
) -> networkx.MultiDiGraph[str]:
    """Return a graph in which the Q, K and V of a head are inputs of one node.

    Settings with plain values become attributes of the graph. Removed edges and their nodes are included
    if ``whole``.
    """
    import networkx as nx

    graph: networkx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.graph.update({k: v for k, v in settings.items() if isinstance(v, (str, int, float))})
    for decision, score in zip(decisions, scores, strict=True):
        if not (whole or decision.kept):
            continue
        source, destination, slot = ends(decision.edge.name)
        for node in (source, destination):
            graph.add_node(node, **_node_attributes(node))
        values = _without_none(slot=slot, score=score, **entry(decision))
        graph.add_edge(source, destination, key=label(decision), **values)
    return graph


def _node_attributes(name: str) -> dict[str, Any]:
    match = HEAD.fullmatch(name)
    head = int(match[2]) if match else None
    return {"kind": kind_of(name), **_without_none(block=block_of(name), head=head)}


def _without_none(**values: Any) -> dict[str, Any]:
    """Drop attributes that are ``None``, which graph file formats cannot hold."""
    return {name: value for name, value in values.items() if value is not None}
