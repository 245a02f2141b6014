"""What graph JSON cannot hold is not written, and files that do not fit are refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_plugin.errors import GraphError, ModelError, PahqError, ResultError
from pahq_plugin.results.result import Discovery, Stats
from tests.helpers.interchange import (
    EDGE,
    SEARCH,
    TODAYS,
    changed,
    made_up,
    one_block,
    random_result,
    read_text,
    refused,
    two_blocks,
)
from tests.helpers.replay import canonical_order
from tests.helpers.small import patchable, small_model, transformer


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
    "no transformer": (no_transformer, ("not a transformer; JSON graphs have edges",)),
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
    "empty": ("", ("not readable JSON",)),
    "no JSON": ("circuit: yes", ("not readable JSON",)),
    "torn": (TODAYS[:-30], ("not readable JSON",)),
    "two": (TODAYS * 2, ("not readable JSON", "Extra data")),
    "BOM": ("\ufeff" + TODAYS, ("not readable JSON", "BOM")),
    "list": (f"[{TODAYS}]", ("holds a list", "cfg, nodes and edges")),
    "number": ("3", ("holds 3", "an object")),
    "null": ("null", ("holds null", "an object")),
    "nested lists": ("[" * 200_000, ("not readable JSON",)),
    "nested objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, ("not readable JSON",)),
    "nested score": (TODAYS.replace("-0.5", "[" * 400 + "]" * 400), ("score is a list",)),
    "long number": (TODAYS.replace("-0.5", "9" * 5_000), ("not readable JSON", "digits")),
    "large": (" " * (2**20 + 2**10 * 8 + 1), ("1,056,769 bytes", "8 edges", "1,056,768")),
    "edge twice": (TODAYS.replace("<k>", "<q>"), ('"input->a0.h0<q>" appears twice',)),
    "node twice": (TODAYS.replace('"m0":', '"a0.h0":'), ('"a0.h0" appears twice',)),
    "score twice": (
        TODAYS.replace('"score": 1.0', '"score": 1, "score": 1'),
        ('"score" appears twice',),
    ),
    "cfg twice": (TODAYS.replace('{"cfg":', '{"edges": {}, "cfg":'), ('"edges" appears twice',)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_graph_is_refused(text: str, tmp_path: Path) -> None:
    content, words = TEXTS[text]
    refused(ResultError, lambda: read_text(content, tmp_path), str(tmp_path / "theirs.json"), *words)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes(TODAYS.encode("utf-16"))
    refused(ResultError, lambda: read_graph_json(tmp_path / "graph.json", one_block()), "not readable")


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
