"""Decisions as a pandas table and as a networkx graph; both packages are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pahq_plugin.labels import HEAD, block_of, ends, kind_of
from pahq_plugin.results.terminal import label

if TYPE_CHECKING:
    import networkx
    import pandas

COLUMNS = ("edge", "src", "dest", "seq_idx", "effect", "kept", "exact", "score")


def decision_rows(entries: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Return one row per decision, with the columns `COLUMNS`.

    Args:
        entries: decisions of a result's record.
        scores: the prune score of each.
    """
    rows = []
    for entry, score in zip(entries, scores, strict=True):
        src, _, dest = entry["edge"].partition("->")
        rows.append({**entry, "src": src, "dest": dest, "score": score})
    return rows


def data_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return one row per edge, in the order decided; ``seq_idx`` is NA for edges without a position."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    kinds = {"seq_idx": "Int64", "effect": float, "kept": bool, "exact": bool, "score": float}
    return frame.astype(kinds).rename_axis("order")


def node_graph(
    rows: list[dict[str, Any]], settings: Mapping[str, Any], whole: bool
) -> networkx.MultiDiGraph[str]:
    """Return a graph in which the Q, K and V of a head are inputs of one node.

    Args:
        rows: from `decision_rows`.
        settings: the result's settings; those with plain values become attributes of the graph.
        whole: whether to include removed edges and their nodes.
    """
    import networkx as nx

    plain = {k: v for k, v in settings.items() if isinstance(v, (str, int, float, bool))}
    graph: networkx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.graph.update(plain)
    for row in rows:
        if not (whole or row["kept"]):
            continue
        source, destination, slot = ends(row["edge"])
        for node in (source, destination):
            graph.add_node(node, **_node_attributes(node))
        values = {name: row[name] for name in ("edge", "effect", "kept", "exact", "score")}
        values |= _without_none(slot=slot, seq_idx=row["seq_idx"])
        graph.add_edge(source, destination, key=label(row), **values)
    return graph


def _node_attributes(name: str) -> dict[str, Any]:
    match = HEAD.fullmatch(name)
    head = int(match[2]) if match else None
    return {"kind": kind_of(name), **_without_none(block=block_of(name), head=head)}


def _without_none(**values: Any) -> dict[str, Any]:
    """Drop attributes that are ``None``, which graph file formats cannot hold."""
    return {name: value for name, value in values.items() if value is not None}
