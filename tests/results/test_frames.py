"""A result as a pandas table and a networkx graph."""

from __future__ import annotations

import networkx as nx
import pandas as pd

from pahq_plugin.results.result import Discovery


def test_pandas_has_a_row_an_edge_in_the_order_decided(found: Discovery) -> None:
    frame = found.to_pandas()
    columns = ["edge", "src", "dest", "seq_idx", "effect", "kept", "exact", "score"]
    assert list(frame.columns) == columns and frame.index.name == "order"
    assert list(frame.index) == list(range(len(found.decisions)))
    for row, one in zip(frame.itertuples(), found.decisions, strict=True):
        assert (row.edge, row.src, row.dest) == (one.edge.name, one.edge.src.name, one.edge.dest.name)
        assert (row.effect, row.kept, row.exact) == (one.effect, one.kept, one.exact)
        assert row.score == float(one.edge.prune_score(found.prune_scores))
    assert frame.seq_idx.isna().all() and frame.kept.dtype == bool
    assert set(frame.nlargest(len(found.circuit), "score").edge) == {e.name for e in found.circuit}


def test_pandas_of_positions(positional: Discovery) -> None:
    frame = positional.to_pandas()
    assert frame.seq_idx.dtype == "Int64"
    assert list(frame.seq_idx) == [d.edge.seq_idx for d in positional.decisions]
    assert isinstance(frame, pd.DataFrame)


def test_networkx_is_the_circuit(found: Discovery) -> None:
    graph = found.to_networkx()
    assert isinstance(graph, nx.DiGraph) and nx.is_directed_acyclic_graph(graph)
    assert {data["edge"] for *_, data in graph.edges(data=True)} == {e.name for e in found.circuit}
    for source, destination, data in graph.edges(data=True):
        name = f"{source}->{destination}" + (f".{data['slot']}" if "slot" in data else "")
        assert name == data["edge"] and data["kept"] and data["effect"] >= 0.01
    assert {data["kind"] for _, data in graph.nodes(data=True)} <= {"input", "head", "mlp", "output"}
    heads = [(n, d) for n, d in graph.nodes(data=True) if d["kind"] == "head"]
    assert heads and all(n == f"A{d['block']}.{d['head']}" for n, d in heads)
    assert graph.graph["method"] == "acdc" and graph.graph["threshold"] == 0.01


def test_paths_lead_through_heads(found: Discovery) -> None:
    graph = found.to_networkx(whole=True)
    assert graph.number_of_edges() == len(found.decisions)
    for node in graph:
        assert nx.has_path(graph, "Resid Start", node) and nx.has_path(graph, node, "Resid End")


def test_positions_are_edges_of_their_own(positional: Discovery) -> None:
    graph = positional.to_networkx()
    assert graph.number_of_edges() == len(positional.circuit)
    assert {data["seq_idx"] for *_, data in graph.edges(data=True)} <= set(range(6))
    assert ("Resid Start", "MLP 0") in graph.edges() or graph.number_of_nodes() > 1


def test_graph_files_take_the_graph(positional: Discovery) -> None:
    text = "\n".join(nx.generate_graphml(positional.to_networkx()))
    read = nx.parse_graphml(text, force_multigraph=True)
    assert read.number_of_edges() == len(positional.circuit)
