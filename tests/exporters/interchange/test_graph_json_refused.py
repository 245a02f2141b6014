"""What graph JSON cannot hold is not written, and files that do not fit are refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_plugin.errors import GraphError, PahqError, ResultError
from tests.helpers.interchange import (
    EDGE,
    TODAYS,
    changed,
    made_up,
    one_block,
    random_result,
    read_text,
    refused,
    two_blocks,
)
from tests.helpers.small import small_model


@pytest.mark.parametrize("effect", [math.nan, -math.inf])
def test_an_effect_that_is_not_finite_is_refused(effect: float, tmp_path: Path) -> None:
    result = made_up(two_blocks(), [1.0, effect], 0.5)
    bad = result.decisions[1].edge.name
    refused(ResultError, lambda: write_graph_json(result, tmp_path / "a"), bad, str(effect))
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_lacks_or_repeats_a_decision_is_refused(tmp_path: Path) -> None:
    result = made_up(two_blocks(), [1.0], 0.5)
    for decisions in ((), (*result.decisions, result.decisions[0])):
        part = dataclasses.replace(result, decisions=decisions)
        words = f"{len(decisions)} decisions"
        refused(ResultError, lambda part=part: write_graph_json(part, tmp_path / "a"), words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    refused(ResultError, lambda: read_graph_json(tmp_path, two_blocks()), str(tmp_path))
    refused(ResultError, lambda: read_graph_json("a\0b", two_blocks()))


CHANGES: dict[str, tuple[tuple[str, ...], Any, type[PahqError]]] = {
    "no nodes": (("nodes",), ..., ResultError),
    "no edges": (("edges",), ..., ResultError),
    "nodes list": (("nodes",), ["m0"], ResultError),
    "edges null": (("edges",), None, ResultError),
    "n_heads other": (("cfg", "n_heads"), 12, ResultError),
    "n_heads huge": (("cfg", "n_heads"), 10**4000, ResultError),
    "parallel": (("cfg", "parallel_attn_mlp"), True, ResultError),
    "width other": (("cfg", "d_model"), 768, ResultError),
    "n_layers bool": (("cfg", "n_layers"), True, ResultError),
    "n_heads float": (("cfg", "n_heads"), 1.0, ResultError),
    "n_heads text": (("cfg", "n_heads"), "1", ResultError),
    "parallel number": (("cfg", "parallel_attn_mlp"), 0, ResultError),
    "odd node": (("nodes", "m\n\ud800"), True, GraphError),
    "node number": (("nodes", "m0"), 1, ResultError),
    "node empty": (("nodes", "m0"), {}, ResultError),
    "node null": (("nodes", "m0", "in_graph"), None, ResultError),
    "neurons": (("nodes", "m0", "neurons"), [True], ResultError),
    "neuron scores": (("nodes", "m0", "neurons_scores"), [1.0], ResultError),
    "unknown edge": (("edges", "a0.h0->a0.h0<q>"), {"score": 0.0, "in_graph": False}, GraphError),
    "our name": (("edges", "Resid Start->MLP 0"), {"score": 0.0, "in_graph": False}, GraphError),
    "unseparated": (("edges", "input->a0.h0"), {"score": 0.0, "in_graph": False}, GraphError),
    "long name": (("edges", "x" * 10**5), {"score": 0.0, "in_graph": False}, GraphError),
    "edge list": (EDGE, [0.0, False], ResultError),
    "edge number": (EDGE, 0.5, ResultError),
    "edge bool": (EDGE, True, ResultError),
    "no in_graph": ((*EDGE, "in_graph"), ..., ResultError),
    "in_graph text": ((*EDGE, "in_graph"), "no", ResultError),
    "score NaN": ((*EDGE, "score"), math.nan, ResultError),
    "score inf": ((*EDGE, "score"), -math.inf, ResultError),
    "score beyond FP32": ((*EDGE, "score"), 1e39, ResultError),
    "score huge": ((*EDGE, "score"), 10**4000, ResultError),
    "score bool": ((*EDGE, "score"), True, ResultError),
    "score text": ((*EDGE, "score"), "0.5", ResultError),
    "score object": ((*EDGE, "score"), {}, ResultError),
}
"""Besides those of tests/messages."""


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_refused_by_name(change: str, tmp_path: Path) -> None:
    """The message names the file and the key."""
    path, value, error = CHANGES[change]
    text = json.dumps(changed(json.loads(TODAYS), path, value))
    words = (str(tmp_path / "theirs.json"), json.dumps(path[-1])[1:20].strip('"'))
    refused(error, lambda: read_text(text, tmp_path), *words)


@pytest.mark.parametrize("entry", [{"score": 0.0, "in_graph": True}, {"score": 1e-9, "in_graph": False}])
@pytest.mark.parametrize("name", ["input->m0", "a0.h0->m0", "m0->logits"])
def test_a_model_of_attention_alone_has_no_mlp_in_its_circuit(
    name: str, entry: dict[str, Any], tmp_path: Path
) -> None:
    edges = {"m0->logits": {"score": 0.0, "in_graph": False}} | {name: entry}
    text = json.dumps(json.loads(TODAYS) | {"edges": edges})
    model = one_block(attn_only=True)
    refused(ResultError, lambda: read_text(text, tmp_path, model), name)


TEXTS: dict[str, str] = {
    "empty": "",
    "no JSON": "circuit: yes",
    "torn": TODAYS[:-30],
    "two": TODAYS * 2,
    "BOM": "\ufeff" + TODAYS,
    "list": f"[{TODAYS}]",
    "number": "3",
    "null": "null",
    "nested lists": "[" * 200_000,
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nested score": TODAYS.replace("-0.5", "[" * 400 + "]" * 400),
    "long number": TODAYS.replace("-0.5", "9" * 5_000),
    "edge twice": TODAYS.replace("<k>", "<q>"),
    "node twice": TODAYS.replace('"m0":', '"a0.h0":'),
    "score twice": TODAYS.replace('"score": 1.0', '"score": 1, "score": 1'),
    "cfg twice": TODAYS.replace('{"cfg":', '{"edges": {}, "cfg":'),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_graph_is_refused(text: str, tmp_path: Path) -> None:
    refused(ResultError, lambda: read_text(TEXTS[text], tmp_path), str(tmp_path / "theirs.json"))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes(TODAYS.encode("utf-16"))
    refused(ResultError, lambda: read_graph_json(tmp_path / "graph.json", one_block()))


def test_a_file_just_small_enough_is_read(tmp_path: Path) -> None:
    text = TODAYS.ljust(2**20 + 2**10 * 8)
    refused(ResultError, lambda: read_text(text + " ", tmp_path), "1,056,769")
    assert read_text(text, tmp_path) == read_text(TODAYS, tmp_path)


def test_a_file_of_another_shape_is_refused_both_ways(tmp_path: Path) -> None:
    parallel = small_model("parallel")
    file = write_graph_json(random_result(parallel), tmp_path / "graph.json")
    refused(ResultError, lambda: read_graph_json(file, small_model()), "parallel_attn_mlp")
    file = write_graph_json(random_result(small_model()), tmp_path / "graph.json")
    refused(ResultError, lambda: read_graph_json(file, parallel), "parallel_attn_mlp")
    refused(ResultError, lambda: read_graph_json(file, one_block()), "n_layers")
