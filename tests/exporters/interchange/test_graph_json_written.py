"""Circuits written as JSON graphs of EAP-IG and the MIB circuit track."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_plugin.results.result import Stats
from tests.helpers.architectures import build, random_architecture
from tests.helpers.interchange import (
    assert_runs_as_the_circuit,
    host_name,
    made_up,
    random_result,
    their_names,
    two_blocks,
)
from tests.helpers.small import loader, patchable, small_model, transformer


def fitting(seed: int) -> bool:
    """Whether the format can hold the edges of a random architecture."""
    drawn = random_architecture(seed)
    return drawn.separate_qkv and not drawn.positional_edges


SEEDS = [seed for seed in range(60) if fitting(seed)]


def their_top(graph: dict[str, Any], count: int, size: Callable[[float], float] = abs) -> set[str]:
    """The edges that ``apply_topn(count)`` takes; fails where a tie leaves them open."""
    names = list(graph["edges"])
    scores = torch.tensor([graph["edges"][name]["score"] for name in names], dtype=torch.float32)
    ranked = sorted(zip(map(size, scores.tolist()), names, strict=True), reverse=True)
    if 0 < count < len(ranked):
        assert ranked[count - 1][0] > ranked[count][0], "a tie at the border of the circuit"
    return {name for _, name in ranked[:count]}


def test_the_random_architectures_are_of_every_kind() -> None:
    drawn = [random_architecture(seed) for seed in SEEDS]
    assert any(a.parallel_attn_mlp for a in drawn) and any(a.attn_only for a in drawn)
    assert {a.dtype for a in drawn} == {torch.float32, torch.float64}
    assert {1, 2} <= {a.n_heads for a in drawn} and {1, 2, 3, 4} <= {a.n_layers for a in drawn}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_written_circuit_is_read_back_and_is_a_graph_of_theirs(seed: int, tmp_path: Path) -> None:
    model, _ = build(random_architecture(seed))
    result = random_result(model, seed)
    file = write_graph_json(result, tmp_path / "deep" / "graph.json")
    graph = json.loads(file.read_text())

    assert graph.keys() == {"cfg", "nodes", "edges"}
    cfg = model.cfg
    assert graph["cfg"] == {"n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "d_model": cfg.d_model,
                            "parallel_attn_mlp": cfg.parallel_attn_mlp}  # fmt: skip
    nodes, edges = their_names(graph["cfg"])
    assert graph["nodes"].keys() == nodes and graph["edges"].keys() == edges
    for entry in graph["nodes"].values():
        assert entry.keys() == {"in_graph"} and type(entry["in_graph"]) is bool
    for entry in graph["edges"].values():
        assert entry.keys() == {"score", "in_graph"}
        assert type(entry["in_graph"]) is bool and type(entry["score"]) is float

    circuit = {name for name, entry in graph["edges"].items() if entry["in_graph"]}
    assert circuit == {host_name(edge) for edge in result.circuit}
    assert 0 < len(circuit) < len(model.edges)
    assert their_top(graph, len(circuit)) == their_top(graph, len(circuit), float) == circuit
    touched = {end.split("<")[0] for name in circuit for end in name.split("->")} | {"logits"}
    assert {name for name, entry in graph["nodes"].items() if entry["in_graph"]} == touched

    read = read_graph_json(file, model)
    assert read.circuit == result.circuit and read.scores.keys() == model.edges
    for edge, score in read.scores.items():
        assert score == graph["edges"][host_name(edge)]["score"]
    for decision in result.decisions:
        assert read.scores[decision.edge] == pytest.approx(max(decision.effect, 0.0), rel=1e-6)
    for name, scores in result.prune_scores.items():
        assert read.prune_scores(model)[name].dtype == scores.dtype
        assert torch.equal(read.prune_scores(model)[name], scores.float().to(scores.dtype))


def test_a_search_is_read_back_and_runs_as_that_circuit(tmp_path: Path) -> None:
    model = small_model()
    result = pahq.discover(model, loader(), threshold=0.01, metric="mse", progress=False)
    read = read_graph_json(write_graph_json(result, tmp_path / "a.json"), small_model())
    assert 0 < len(read.circuit) < len(read.scores) and read.circuit == result.circuit
    assert_runs_as_the_circuit(read)


@pytest.mark.parametrize("parallel", [False, True])
def test_nodes_and_edges_stand_in_their_order(parallel: bool, tmp_path: Path) -> None:
    """As in MIB's circuits/ioi-eap-ig.json; in a parallel block the MLP comes with each source."""
    model = patchable(transformer(n_layers=1, n_heads=2, parallel_attn_mlp=parallel))
    graph = json.loads(write_graph_json(random_result(model), tmp_path / "a.json").read_text())
    heads = [f"input->a0.h{head}<{letter}>" for head in (0, 1) for letter in "qkv"]
    into_mlp = ["input->m0"] if parallel else ["input->m0", "a0.h0->m0", "a0.h1->m0"]
    nodes = ["input", "a0.h0", "a0.h1", "m0"]
    assert list(graph["nodes"]) == [*nodes, "logits"]
    assert list(graph["edges"]) == heads + into_mlp + [f"{node}->logits" for node in nodes]
    read = small_model("parallel" if parallel else "layer_norm")
    edges = list(json.loads(write_graph_json(random_result(read), tmp_path / "b").read_text())["edges"])
    assert (edges.index("input->m1") < edges.index("a0.h0->a1.h0<q>")) == parallel


def test_equal_results_give_equal_bytes_in_any_order_of_decisions(tmp_path: Path) -> None:
    result = random_result(two_blocks())
    other = dataclasses.replace(result, decisions=result.decisions[::-1], stats=Stats(seconds=9.0))
    files = [write_graph_json(r, tmp_path / name) for r, name in ((result, "a"), (other, "b"))]
    assert files[0].read_bytes() == files[1].read_bytes()
    for line in files[0].read_text().splitlines():
        assert line.count("in_graph") <= 1  # so that a diff shows single edges


def test_scores_of_a_scoring_method_keep_their_sign(tmp_path: Path) -> None:
    result = pahq.discover(small_model(), loader(), method="eap", n_edges=20, progress=False)
    file = write_graph_json(result, tmp_path / "eap.json")
    graph = json.loads(file.read_text())
    assert their_top(graph, 20) == {host_name(edge) for edge in result.circuit}
    assert read_graph_json(file, small_model()).scores == {d.edge: d.effect for d in result.decisions}
    assert {math.copysign(1, d.effect) for d in result.decisions} == {-1, 1}


BORDERS: dict[str, tuple[list[float], float]] = {
    "tied in FP32": ([1.0, 1.0 - 2**-30, 1.0 - 2**-40], 1.0),
    "rounded up to the kept": ([0.1 + 1e-12, 0.1 - 1e-17, 0.1 - 1e-12], 0.1),
    "neighbours": ([1.0, float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))], 1.0),
    "beyond FP32": ([1e300, 1e299], 2e299),
    "below FP32": ([2e-50, 1e-50], 1.5e-50),
    "harmful": ([0.2, -5.0, -0.3, 0.1], 0.15),
    "kept although harmful": ([0.2, -0.1, -3.0], -1.0),
    "none": ([0.2, 0.1, -3.0], 0.5),
    "all": ([0.7] * 110, 0.7),
}

SINGLE, DOUBLE = torch.float32, torch.float64

SCORED = [border for border in BORDERS if not border.startswith("kept")]
"""Scores are ranked by magnitude: their threshold is not negative."""

CASES = [
    *[(border, dtype, False) for border in BORDERS for dtype in (SINGLE, DOUBLE)],
    *[(border, DOUBLE, True) for border in SCORED],  # of an FP32 model, scores are FP32 numbers
]


@pytest.mark.parametrize(("border", "dtype", "scored"), CASES)
def test_their_top_edges_are_the_circuit_at_every_border(
    border: str, dtype: torch.dtype, scored: bool, tmp_path: Path
) -> None:
    effects, threshold = BORDERS[border]
    result = made_up(small_model(dtype=dtype), effects, threshold, scored=scored)
    file = write_graph_json(result, tmp_path / "graph.json")
    graph = json.loads(file.read_text(), parse_constant=pytest.fail)
    circuit = {host_name(edge) for edge in result.circuit}
    assert their_top(graph, len(circuit)) == circuit
    read = read_graph_json(file, result.model)
    assert read.circuit == result.circuit
    assert all(torch.tensor(score).item() == score for score in read.scores.values())


def test_a_torn_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_graph_json(random_result(two_blocks()), tmp_path / "graph.json")
    old = file.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_graph_json(made_up(two_blocks(), [1.0], 0.5), file)
    assert file.read_bytes() == old and [path.name for path in tmp_path.iterdir()] == ["graph.json"]
