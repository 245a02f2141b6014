"""Circuits as JSON graphs of EAP-IG and the MIB circuit track, and what such files may not hold."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.prune import run_circuits
from auto_circuit.types import Edge, PatchType
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from hypothesis import given, settings
from hypothesis import strategies as st

import pahq_plugin as pahq
from pahq_exporters.interchange import GraphJson, read_graph_json, write_graph_json
from pahq_plugin.errors import ConfigError, GraphError, ModelError, PahqError, ResultError
from pahq_plugin.result import Decision, Discovery, Stats
from tests.helpers.architectures import build, random_architecture
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader, patchable, small_model, transformer

SEARCH = {"method": "acdc", "threshold": 0.01, "metric": "mse", "ablation": "resample",
          "scored": False, "seed": 0, "precision": None}  # fmt: skip


def fitting(seed: int) -> bool:
    """Whether the format can hold the edges of a random architecture."""
    drawn = random_architecture(seed)
    return drawn.separate_qkv and not drawn.positional_edges


SEEDS = [seed for seed in range(60) if fitting(seed)]


@cache
def one_block(**changes: Any) -> PatchableModel:
    """One block with one head: 8 edges, or without its MLP 5."""
    return patchable(transformer(n_layers=1, n_heads=1, **changes))


@cache
def two_blocks() -> PatchableModel:
    return small_model()


def made_up(model: PatchableModel, effects: Iterable[float], threshold: float, **more: Any) -> Discovery:
    """A result with the given effects, in a random order of the edges; the others have none."""
    edges = canonical_order(model)
    random.Random(5).shuffle(edges)
    padded = [*effects, *[0.0] * len(edges)][: len(edges)]
    size = abs if more.get("scored") else float
    decisions = tuple(
        Decision(edge, effect, size(effect) >= threshold, exact=True)
        for edge, effect in zip(edges, padded, strict=True)
    )
    return Discovery(decisions, SEARCH | {"threshold": threshold} | more, Stats(), model)


def random_result(model: PatchableModel, seed: int = 0) -> Discovery:
    """Effects of both signs over some orders of magnitude, a third or so of the edges kept."""
    draw = random.Random(seed)
    effects = [draw.choice((-1, 1, 1)) * 10 ** draw.uniform(-6, 1) for _ in model.edges]
    return made_up(model, effects, 0.01)


# Their graph, from its documentation --------------------------------------------------------------


def their_names(cfg: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Nodes and edges of the graph that EAP-IG makes of a ``cfg``.

    After its README ("nodes are either the inputs, attention heads, MLPs, or logits", "each MLP (and
    the logits) has 1 input, but each attention head has 3: the Q, K, and V input") and the comments of
    ``Graph`` ('input', 'a0.h0', 'm0', 'logits'; 'input->a0.h0<q>', 'a0.h0->m0'): a source goes to
    everything that runs later.
    """
    layers, heads = range(cfg["n_layers"]), range(cfg["n_heads"])
    when = {"input": -1.0, "logits": float(cfg["n_layers"])}
    when |= {f"a{layer}.h{head}": float(layer) for layer in layers for head in heads}
    when |= {f"m{layer}": layer + (0.0 if cfg["parallel_attn_mlp"] else 0.5) for layer in layers}
    edges = set()
    for source, start in when.items():
        for dest, end in when.items():
            if start < end:
                suffixes = ("<q>", "<k>", "<v>") if dest.startswith("a") else ("",)
                edges |= {f"{source}->{dest}{suffix}" for suffix in suffixes}
    return set(when), edges


def their_top(graph: dict[str, Any], count: int, size: Callable[[float], float] = abs) -> set[str]:
    """The edges that ``apply_topn(count)`` takes; fails where a tie leaves them open."""
    names = list(graph["edges"])
    scores = torch.tensor([graph["edges"][name]["score"] for name in names], dtype=torch.float32)
    ranked = sorted(zip(map(size, scores.tolist()), names, strict=True), reverse=True)
    if 0 < count < len(ranked):
        assert ranked[count - 1][0] > ranked[count][0], "a tie at the border of the circuit"
    return {name for _, name in ranked[:count]}


def host_name(edge: Edge) -> str:
    """Their name of a host edge, from the host's name."""
    source, dest = edge.name.split("->")
    words = {"Resid Start": "input", "Resid End": "logits"}

    def node(name: str) -> str:
        block, _, head = name[1:].partition(".")
        return words.get(name) or (f"m{name[4:]}" if name.startswith("MLP ") else f"a{block}.h{head}")

    if dest[-2:] in (".Q", ".K", ".V"):
        return f"{node(source)}->{node(dest[:-2])}<{dest[-1].lower()}>"
    return f"{node(source)}->{node(dest)}"


def test_the_reference_has_the_published_numbers_of_edges() -> None:
    """``EDGE_COUNTS`` of MIB's evaluation.py; the shapes are those of the models named there."""
    published = {(12, 12): 32_491, (24, 14): 179_749, (26, 8): 74_218, (6, 4): 1_108}
    for (n_layers, n_heads), count in published.items():
        cfg = {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": False}
        assert len(their_names(cfg)[1]) == count


# Written ------------------------------------------------------------------------------------------


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


def test_host_and_reference_agree_on_what_an_edge_is() -> None:
    """Otherwise names could be mixed up in one way by the writer and the reader."""
    model = small_model("parallel")
    assert {host_name(edge) for edge in model.edges} == their_names(model.cfg.to_dict())[1]


def test_a_search_is_read_back_and_runs_as_that_circuit(tmp_path: Path) -> None:
    model = small_model()
    result = pahq.discover(model, loader(), threshold=0.01, metric="mse", progress=False)
    read = read_graph_json(write_graph_json(result, tmp_path / "a.json"), small_model())
    assert 0 < len(read.circuit) < len(read.scores) and read.circuit == result.circuit
    assert_runs_as_the_circuit(read)


def assert_runs_as_the_circuit(read: GraphJson) -> None:
    model = small_model()
    run_circuits(model, loader(), [len(read.circuit)], read.prune_scores(model), PatchType.TREE_PATCH)
    patched = {edge for edge in model.edges if edge.patch_mask(model)[edge.patch_idx] != 0}
    assert patched == model.edges - read.circuit


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


# Read: files of those tools -----------------------------------------------------------------------

TODAYS = """
{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 32},
 "nodes": {"input": {"in_graph": true}, "a0.h0": {"in_graph": true}, "m0": {"in_graph": false},
           "logits": {"in_graph": true}},
 "edges": {"input->a0.h0<q>": {"score": -0.5, "in_graph": true},
           "input->a0.h0<k>": {"score": 0.001467512222006917, "in_graph": false},
           "input->a0.h0<v>": {"score": 2, "in_graph": true},
           "input->m0": {"score": -3.661245955299819e-06, "in_graph": false},
           "a0.h0->m0": {"score": 0.0, "in_graph": false},
           "input->logits": {"score": 0.25, "in_graph": false},
           "a0.h0->logits": {"score": 1.0, "in_graph": true},
           "m0->logits": {"score": -0.25, "in_graph": false}}}
"""
"""As ``Graph.to_json`` writes it today: signed scores, and the circuit the top 3 by magnitude."""

Q, K, V = (f"Resid Start->A0.0.{letter}" for letter in "QKV")
LAST = "A0.0->Resid End"


def read_text(text: str, folder: Path, model: PatchableModel | None = None) -> GraphJson:
    (folder / "theirs.json").write_text(text, encoding="utf-8")
    return read_graph_json(folder / "theirs.json", model or one_block())


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
        with pytest.raises(ConfigError, match=f"n_edges={n_edges} must be from 1 to {len(everything)}"):
            graph_of(scores, []).discovery(one_block(), n_edges=n_edges)


def test_a_circuit_without_scores_is_a_result() -> None:
    result = graph_of({}, ["A0.0->MLP 0"]).discovery(one_block())
    assert [d.effect for d in result.decisions][:2] == [1.0, 0.0] and len(result.circuit) == 1


def test_a_circuit_that_is_not_of_the_largest_scores_is_no_result() -> None:
    """As greedy search makes them, or ``apply_topn(absolute=False)``."""
    read = graph_of({"A0.0->Resid End": -0.5, "Resid Start->MLP 0": 0.25}, ["Resid Start->MLP 0"])
    with pytest.raises(ResultError, match=r"A0\.0->Resid End is not in the graph, .* -0\.5 .*n_edges"):
        read.discovery(one_block())


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


# Refused ------------------------------------------------------------------------------------------


def refused(error: type[PahqError], call: Callable[[], object], *words: str) -> None:
    """``call`` raises exactly ``error``, in one line that holds ``words``."""
    with pytest.raises(PahqError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert len(message.splitlines()) == 1 and len(message) < 400, message
    for word in words:
        assert word in message, message


def single_positions() -> PatchableModel:
    return patchable(transformer(), seq_len=6)


def not_separated() -> PatchableModel:
    return patchable(transformer(separate_qkv=False), separate_qkv=False)


def not_factorized() -> PatchableModel:
    return patchable_model(
        transformer(separate_qkv=False), factorized=False, slice_output="last_seq", separate_qkv=True
    )


def no_transformer() -> PatchableModel:
    return patchable_model(MicroModel(), factorized=True, slice_output="last_seq")


def with_another_edge() -> PatchableModel:
    model = small_model()
    edge = next(iter(model.edges))
    model.edges.add(dataclasses.replace(edge, src=dataclasses.replace(edge.src, name="Latent")))
    return model


def with_a_stranger() -> PatchableModel:
    model = small_model()
    edge = canonical_order(model)[0]
    model.edges.remove(edge)
    odd = dataclasses.replace(edge.src, name="Latent", module_name="blocks.0.sae", head_idx=None)
    model.edges.add(dataclasses.replace(edge, src=odd))
    return model


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "positions": (single_positions, ("seq_len=6", "seq_len=None")),
    "not separated": (not_separated, ("separate_qkv=False", "separate_qkv=True")),
    "not factorized": (not_factorized, ("not factorized", "factorized=True")),
    "no transformer": (no_transformer, ("no transformer",)),
    "one edge more": (with_another_edge, ("111 edges", "the 110")),
    "another node": (with_a_stranger, ("110 edges", "plain transformer")),
    "not patchable": (transformer, ("HookedTransformer", "patchable_model")),
    "nothing": (lambda: None, ("NoneType", "patchable_model")),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_whose_edges_the_format_cannot_hold_is_refused(kind: str, tmp_path: Path) -> None:
    make, words = MODELS[kind]
    model = make()
    result = Discovery((), SEARCH, Stats(), model)
    refused(ModelError, lambda: write_graph_json(result, tmp_path / "graph.json"), *words)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "graph.json").write_text(TODAYS)
    refused(ModelError, lambda: read_graph_json(tmp_path / "graph.json", model), *words)


@pytest.mark.parametrize("effect", [math.nan, math.inf, -math.inf])
def test_an_effect_that_is_not_finite_is_refused(effect: float, tmp_path: Path) -> None:
    result = made_up(two_blocks(), [1.0, effect], 0.5)
    bad = result.decisions[1].edge.name
    refused(ResultError, lambda: write_graph_json(result, tmp_path / "a"), bad, str(effect))
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_lacks_or_repeats_a_decision_is_refused(tmp_path: Path) -> None:
    result = made_up(two_blocks(), [1.0], 0.5)
    for decisions in ((), result.decisions[1:], (*result.decisions, result.decisions[0])):
        part = dataclasses.replace(result, decisions=decisions)
        words = (f"{len(decisions)} decisions", "the model has 110")
        refused(ResultError, lambda part=part: write_graph_json(part, tmp_path / "a"), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    words = (str(tmp_path), "folder")
    refused(ResultError, lambda: write_graph_json(made_up(two_blocks(), [1.0], 0.5), tmp_path), *words)
    refused(ResultError, lambda: read_graph_json(tmp_path, two_blocks()), str(tmp_path), "no file")
    refused(ResultError, lambda: read_graph_json(tmp_path / "x", two_blocks()), "no file", "to_json")
    refused(ResultError, lambda: read_graph_json("a\0b", two_blocks()), "no file")


EDGE = ("edges", "a0.h0->m0")

CHANGES: dict[str, tuple[tuple[str, ...], Any, type[PahqError], tuple[str, ...]]] = {
    "no cfg": (("cfg",), ..., ResultError, ("lacks cfg", "cfg, nodes and edges")),
    "no nodes": (("nodes",), ..., ResultError, ("lacks nodes",)),
    "no edges": (("edges",), ..., ResultError, ("lacks edges",)),
    "cfg list": (("cfg",), [], ResultError, ("cfg is a list", "an object")),
    "nodes list": (("nodes",), ["m0"], ResultError, ("nodes is a list", "an object")),
    "edges null": (("edges",), None, ResultError, ("edges is null", "an object")),
    "n_layers gone": (("cfg", "n_layers"), ..., ResultError, ("cfg lacks n_layers", "is 1")),
    "n_layers other": (("cfg", "n_layers"), 2, ResultError, ("another model", "n_layers is 2", "is 1")),
    "n_heads other": (("cfg", "n_heads"), 12, ResultError, ("another model", "n_heads is 12", "is 1")),
    "n_heads huge": (("cfg", "n_heads"), 10**4000, ResultError, ("another model", "n_heads is 1000")),
    "parallel": (
        ("cfg", "parallel_attn_mlp"), True, ResultError, ("another model", "parallel_attn_mlp is true"),
    ),
    "width other": (("cfg", "d_model"), 768, ResultError, ("another model", "d_model is 768", "is 32")),
    "n_layers bool": (("cfg", "n_layers"), True, ResultError, ("n_layers is true", "like 1")),
    "n_heads float": (("cfg", "n_heads"), 1.0, ResultError, ("n_heads is 1.0", "like 1")),
    "n_heads text": (("cfg", "n_heads"), "1", ResultError, ('n_heads is "1"',)),
    "parallel number": (("cfg", "parallel_attn_mlp"), 0, ResultError, ("is 0", "like false")),
    "unknown node": (("nodes", "a0.h1"), {"in_graph": True}, GraphError, ('node "a0.h1"', "a0.h0")),
    "odd node": (("nodes", "m\n\ud800"), True, GraphError, ('node "m\\n\\ud800"',)),
    "node number": (("nodes", "m0"), 1, ResultError, ("nodes: m0 is 1", "an object")),
    "node empty": (("nodes", "m0"), {}, ResultError, ("m0: in_graph is missing", "true or false")),
    "node null": (("nodes", "m0", "in_graph"), None, ResultError, ("nodes: m0: in_graph is null",)),
    "neurons": (("nodes", "m0", "neurons"), [True], ResultError, ("nodes: m0: neurons", "neurons")),
    "neuron scores": (("nodes", "m0", "neurons_scores"), [1.0], ResultError, ("neurons_scores",)),
    "neurons outside": (("neurons",), {"m0": [True]}, ResultError, (" neurons chooses",)),
    "unknown edge": (
        ("edges", "a0.h0->a0.h0<q>"), {"score": 0.0, "in_graph": False}, GraphError,
        ('edge "a0.h0->a0.h0<q>"', "input->a0.h0<q>"),
    ),
    "our name": (
        ("edges", "Resid Start->MLP 0"), {"score": 0.0, "in_graph": False}, GraphError,
        ('edge "Resid Start->MLP 0"',),
    ),
    "unseparated": (
        ("edges", "input->a0.h0"), {"score": 0.0, "in_graph": False}, GraphError, ('"input->a0.h0"',),
    ),
    "long name": (
        ("edges", "x" * 10**5), {"score": 0.0, "in_graph": False}, GraphError, ('edge "xxxx', "..."),
    ),
    "edge list": (EDGE, [0.0, False], ResultError, ("edges: a0.h0->m0 is a list", "an object")),
    "edge number": (EDGE, 0.5, ResultError, ("edges: a0.h0->m0 is 0.5", "an object")),
    "edge bool": (EDGE, True, ResultError, ("edges: a0.h0->m0 is true", "an object")),
    "no in_graph": ((*EDGE, "in_graph"), ..., ResultError, ("a0.h0->m0: in_graph is missing",)),
    "in_graph number": ((*EDGE, "in_graph"), 1, ResultError, ("in_graph is 1", "true or false")),
    "in_graph text": ((*EDGE, "in_graph"), "no", ResultError, ('in_graph is "no"', "true or false")),
    "score NaN": ((*EDGE, "score"), math.nan, ResultError, ("score is NaN", "finite")),
    "score inf": ((*EDGE, "score"), -math.inf, ResultError, ("score is -Infinity", "finite")),
    "score beyond FP32": ((*EDGE, "score"), 1e39, ResultError, ("score is 1e+39", "FP32")),
    "score huge": ((*EDGE, "score"), 10**4000, ResultError, ("score is 1000", "...", "FP32")),
    "score bool": ((*EDGE, "score"), True, ResultError, ("score is true", "finite number")),
    "score text": ((*EDGE, "score"), "0.5", ResultError, ('score is "0.5"', "finite number")),
    "score object": ((*EDGE, "score"), {}, ResultError, ("score is an object", "finite number")),
}  # fmt: skip


def changed(graph: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with one key set, or taken out where ``value`` is ``...``."""
    graph = copy.deepcopy(graph)
    parent = graph
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return graph


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_refused_by_name(change: str, tmp_path: Path) -> None:
    path, value, error, words = CHANGES[change]
    text = json.dumps(changed(json.loads(TODAYS), path, value))
    refused(error, lambda: read_text(text, tmp_path), str(tmp_path / "theirs.json"), *words)


@pytest.mark.parametrize("entry", [{"score": 0.0, "in_graph": True}, {"score": 1e-9, "in_graph": False}])
@pytest.mark.parametrize("name", ["input->m0", "a0.h0->m0", "m0->logits"])
def test_a_model_of_attention_alone_has_no_mlp_in_its_circuit(
    name: str, entry: dict[str, Any], tmp_path: Path
) -> None:
    edges = {"m0->logits": {"score": 0.0, "in_graph": False}} | {name: entry}
    text = json.dumps(json.loads(TODAYS) | {"edges": edges})
    model = one_block(attn_only=True)
    refused(
        ResultError, lambda: read_text(text, tmp_path, model), f"edges: {name}", "no MLPs", "score 0"
    )


TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("no readable JSON",)),
    "no JSON": ("circuit: yes", ("no readable JSON",)),
    "torn": (TODAYS[:-30], ("no readable JSON",)),
    "two": (TODAYS * 2, ("no readable JSON", "Extra data")),
    "BOM": ("\ufeff" + TODAYS, ("no readable JSON", "BOM")),
    "list": (f"[{TODAYS}]", ("holds a list", "cfg, nodes and edges")),
    "number": ("3", ("holds 3", "an object")),
    "null": ("null", ("holds null", "an object")),
    "nested lists": ("[" * 200_000, ("no readable JSON",)),
    "nested objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, ("no readable JSON",)),
    "nested score": (TODAYS.replace("-0.5", "[" * 400 + "]" * 400), ("score is a list",)),
    "long number": (TODAYS.replace("-0.5", "9" * 5_000), ("no readable JSON", "digits")),
    "large": (" " * (2**20 + 2**10 * 8 + 1), ("1,056,769 bytes", "8 edges", "1,056,768")),
    "edge twice": (TODAYS.replace("<k>", "<q>"), ('"input->a0.h0<q>" stands twice',)),
    "node twice": (TODAYS.replace('"m0":', '"a0.h0":'), ('"a0.h0" stands twice',)),
    "score twice": (TODAYS.replace('"score": 1.0', '"score": 1, "score": 1'), ('"score" stands twice',)),
    "cfg twice": (TODAYS.replace('{"cfg":', '{"edges": {}, "cfg":'), ('"edges" stands twice',)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_graph_is_refused(text: str, tmp_path: Path) -> None:
    content, words = TEXTS[text]
    refused(ResultError, lambda: read_text(content, tmp_path), str(tmp_path / "theirs.json"), *words)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes(TODAYS.encode("utf-16"))
    refused(ResultError, lambda: read_graph_json(tmp_path / "graph.json", one_block()), "no readable")


def test_a_file_just_small_enough_is_read(tmp_path: Path) -> None:
    text = TODAYS.ljust(2**20 + 2**10 * 8)
    assert read_text(text, tmp_path) == read_text(TODAYS, tmp_path)


def test_a_file_of_another_shape_is_refused_both_ways(tmp_path: Path) -> None:
    parallel = small_model("parallel")
    file = write_graph_json(random_result(parallel), tmp_path / "graph.json")
    refused(ResultError, lambda: read_graph_json(file, small_model()), "parallel_attn_mlp is true")
    file = write_graph_json(random_result(small_model()), tmp_path / "graph.json")
    refused(ResultError, lambda: read_graph_json(file, parallel), "parallel_attn_mlp is false")
    refused(ResultError, lambda: read_graph_json(file, one_block()), "n_layers is 2")


# Anything else ------------------------------------------------------------------------------------

ODD = st.sampled_from((None, True, 0, 10**400, 1e39, math.nan, -math.inf, "1", [], {}))
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.text() | st.sampled_from(
    ("cfg", "nodes", "edges", "score", "in_graph", "input", "m1", "a0.h0", "a1.h0", "m0->m0", "neurons",
     "input->a0.h0<q>", "input->a0.h0<x>", "logits->m0", "n_layers")
)  # fmt: skip


def mutate(draw: st.DrawFn, node: Any) -> Any:
    """One value somewhere inside replaced, taken out, renamed or added."""
    if not isinstance(node, dict) or not node or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(list(node)))
    match draw(st.integers(0, 7)):
        case 0:
            return {k: v for k, v in node.items() if k != key}
        case 1:
            return node | {draw(KEYS): draw(VALUES)}
        case 2:
            return {draw(KEYS) if k == key else k: v for k, v in node.items()}
        case _:
            return node | {key: mutate(draw, node[key])}


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    graph = json.loads(TODAYS)
    for _ in range(draw(st.integers(1, 3))):
        graph = mutate(draw, graph)
    return json.dumps(graph)


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    start = draw(st.integers(0, len(TODAYS)))
    end = start + draw(st.integers(0, 20))
    return TODAYS[:start] + draw(st.text(max_size=6)) + TODAYS[end:]


def read_or_refuse(data: bytes, folder: Path) -> GraphJson | PahqError:
    (folder / "graph.json").write_bytes(data)
    try:
        return read_graph_json(folder / "graph.json", one_block())
    except PahqError as error:
        assert str(folder / "graph.json") in str(error) and len(str(error).splitlines()) == 1
        return error


def assert_sound(read: GraphJson | PahqError) -> None:
    if isinstance(read, GraphJson):
        assert read.scores.keys() == one_block().edges >= read.circuit
        assert all(type(score) is float and math.isfinite(score) for score in read.scores.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=400, deadline=None)
@given(text=mutated_texts())
def test_a_mutated_file_is_read_or_refused(text: str, folder: Path) -> None:
    assert_sound(read_or_refuse(text.encode(), folder))


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(("score", "in_graph")), value=ODD | VALUES)
def test_any_value_in_an_edge_is_read_or_refused(key: str, value: Any, folder: Path) -> None:
    text = json.dumps(changed(json.loads(TODAYS), (*EDGE, key), value))
    assert_sound(read_or_refuse(text.encode(), folder))


@settings(max_examples=200, deadline=None)
@given(text=damaged_texts())
def test_a_damaged_file_is_read_or_refused(text: str, folder: Path) -> None:
    assert_sound(read_or_refuse(text.encode("utf-8", "surrogatepass"), folder))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(data: bytes, folder: Path) -> None:
    assert isinstance(read_or_refuse(data, folder), ResultError)
