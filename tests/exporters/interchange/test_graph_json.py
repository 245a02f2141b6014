"""Files of EAP-IG and MIB are read, and become results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from auto_circuit.types import Edge

import pahq_plugin as pahq
from pahq_exporters.interchange.graph_json import GraphJson, read_graph_json, write_graph_json
from pahq_plugin.errors import ConfigError
from pahq_plugin.results.result import Discovery
from tests.helpers.interchange import (
    TODAYS,
    assert_runs_as_the_circuit,
    one_block,
    random_result,
    read_text,
    two_blocks,
)
from tests.helpers.replay import canonical_order
from tests.helpers.small import small_model

Q, K, V = (f"Resid Start->A0.0.{letter}" for letter in "QKV")

LAST = "A0.0->Resid End"


def named(edges: Iterable[Edge]) -> set[str]:
    return {edge.name for edge in edges}


def test_a_file_of_today(tmp_path: Path) -> None:
    read = read_text(TODAYS, tmp_path)
    assert named(read.circuit) == {Q, V, LAST}
    assert {edge.name: score for edge, score in read.scores.items()} == {
        Q: -0.5, K: 0.001467512222006917, V: 2.0, "Resid Start->MLP 0": -3.661245955299819e-06,
        "A0.0->MLP 0": 0.0, "Resid Start->Resid End": 0.25, LAST: 1.0, "MLP 0->Resid End": -0.25,
    }  # fmt: skip
    assert list(read.scores) == canonical_order(one_block())
    scores = read.prune_scores(one_block())
    assert all(edge.prune_score(scores).item() == pytest.approx(s) for edge, s in read.scores.items())


def test_a_file_of_the_first_version(tmp_path: Path) -> None:
    """Nodes were plain booleans, ``cfg`` had no width, and edges without a score had ``null``."""
    graph = json.loads(TODAYS)
    del graph["cfg"]["d_model"]
    graph["nodes"] = {name: entry["in_graph"] for name, entry in graph["nodes"].items()}
    for entry in graph["edges"].values():
        entry["score"] = None
    read = read_text(json.dumps(graph), tmp_path)
    assert named(read.circuit) == {Q, V, LAST} and set(read.scores.values()) == {0.0}


def test_a_circuit_without_scores(tmp_path: Path) -> None:
    """MIB's other kind of submission: "nearly identical, but without the floating-point scores"."""
    graph = json.loads(TODAYS)
    for entry in graph["edges"].values():
        del entry["score"]
    read = read_text(json.dumps(graph), tmp_path)
    assert named(read.circuit) == {Q, V, LAST} and set(read.scores.values()) == {0.0}
    scores = read.prune_scores(one_block())
    assert {e.name: e.prune_score(scores).item() for e in read.scores} == {
        e.name: float(e in read.circuit) for e in read.scores
    }


def test_prune_scores_without_scores_run_as_the_circuit(tmp_path: Path) -> None:
    file = write_graph_json(random_result(two_blocks()), tmp_path / "graph.json")
    graph = json.loads(file.read_text())
    for entry in graph["edges"].values():
        del entry["score"]
    read = read_text(json.dumps(graph), tmp_path, small_model())
    assert 0 < len(read.circuit) < len(read.scores)
    assert_runs_as_the_circuit(read)


def test_scores_without_a_circuit(tmp_path: Path) -> None:
    """MIB's scripts mark nothing, since the evaluation takes the top edges anyway."""
    read = read_text(TODAYS.replace("true", "false"), tmp_path)
    assert read.circuit == frozenset() and read.scores == read_text(TODAYS, tmp_path).scores


def test_an_edge_that_is_left_out_is_not_in_the_graph(tmp_path: Path) -> None:
    graph = json.loads(TODAYS)
    del graph["edges"]["input->a0.h0<q>"], graph["edges"]["m0->logits"], graph["nodes"]["m0"]
    read = read_text(json.dumps(graph), tmp_path)
    assert named(read.circuit) == {V, LAST} and read.scores.keys() == one_block().edges
    assert {edge.name for edge, score in read.scores.items() if score == 0} == {
        Q, "MLP 0->Resid End", "A0.0->MLP 0",
    }  # fmt: skip
    nothing = {"cfg": graph["cfg"], "nodes": {}, "edges": {}}
    assert read_text(json.dumps(nothing), tmp_path).circuit == frozenset()


def graph_of(scores: dict[str, float], circuit: Iterable[str]) -> GraphJson:
    """Edges of `one_block` by their host names; the others have score 0 and are outside."""
    edges = {edge.name: edge for edge in canonical_order(one_block())}
    values = {edge: scores.get(name, 0.0) for name, edge in edges.items()}
    return GraphJson(frozenset(edges[name] for name in circuit), values)


def test_a_file_becomes_a_result(tmp_path: Path) -> None:
    """Ranked, saved, loaded, and written as the same file again."""
    model, scores = one_block(), {"A0.0->Resid End": -0.5, "Resid Start->MLP 0": 0.25}
    read = graph_of(scores, scores)
    result = read.discovery(model)
    assert [d.edge.name for d in result.decisions[:2]] == list(scores)
    assert result.circuit == read.circuit and result.settings["method"] == "graph-json"
    back = Discovery.load(result.save(tmp_path / "r"), model)
    assert back.decisions == result.decisions
    again = read_graph_json(write_graph_json(back, tmp_path / "g.json"), model)
    assert (again.circuit, again.scores) == (read.circuit, read.scores)


def test_a_result_of_scores_alone_says_how_many() -> None:
    scores = {"A0.0->Resid End": -0.5, "Resid Start->MLP 0": 0.25, "A0.0->MLP 0": 0.25}
    everything = [edge.name for edge in canonical_order(one_block())]
    for marked in ([], everything):
        read = graph_of(scores, marked)
        assert len(read.discovery(one_block()).circuit) == len(marked)
        assert [e.name for e in read.discovery(one_block(), n_edges=1).circuit] == ["A0.0->Resid End"]
        assert len(read.discovery(one_block(), n_edges=2).circuit) == 3  # a tie goes in whole
    for n_edges in (0, len(everything) + 1):
        with pytest.raises(ConfigError, match=f"n_edges={n_edges}"):
            graph_of(scores, []).discovery(one_block(), n_edges=n_edges)


def test_a_circuit_without_scores_is_a_result() -> None:
    result = graph_of({}, ["A0.0->MLP 0"]).discovery(one_block())
    assert [d.effect for d in result.decisions][:2] == [1.0, 0.0] and len(result.circuit) == 1


def test_a_circuit_may_leave_out_larger_scores(tmp_path: Path) -> None:
    """As pruned ones do, greedy search, or ``apply_topn(absolute=False)``."""
    read = graph_of({"A0.0->Resid End": -0.5, "Resid Start->MLP 0": 0.25}, ["Resid Start->MLP 0"])
    model = one_block()
    result = read.discovery(model)
    assert named(result.circuit) == {"Resid Start->MLP 0"}
    assert result.decisions[0].effect == -0.5 and not result.decisions[0].kept
    loaded = pahq.Discovery.load(result.save(tmp_path / "r"), model)
    assert loaded == result and named(loaded.circuit) == {"Resid Start->MLP 0"}
    top = max(model.edges, key=lambda edge: abs(float(edge.prune_score(loaded.prune_scores))))
    assert top.name == "Resid Start->MLP 0"  # the host takes the circuit by the size of scores
    write_graph_json(loaded, tmp_path / "g.json")
    assert named(read_graph_json(tmp_path / "g.json", model).circuit) == {"Resid Start->MLP 0"}


def test_keys_that_do_not_concern_edges_are_passed_over(tmp_path: Path) -> None:
    graph = json.loads(TODAYS)
    graph["method"] = {"anything": [math.nan]}
    graph["cfg"] |= {"model_name": "gpt2", "act_fn": "gelu"}  # "similar to a TLens configuration object"
    graph["nodes"]["m0"]["score"] = math.nan  # of a node that was not scored
    graph["edges"]["a0.h0->m0"]["comment"] = ["x"]
    assert read_text(json.dumps(graph), tmp_path) == read_text(TODAYS, tmp_path)


def test_a_model_of_attention_alone_reads_its_part(tmp_path: Path) -> None:
    model = one_block(attn_only=True)
    read = read_text(
        TODAYS.replace("-3.661245955299819e-06", "0").replace("-0.25", "-0.0"), tmp_path, model
    )
    assert named(read.circuit) == {Q, V, LAST} and len(read.scores) == len(model.edges) == 5
