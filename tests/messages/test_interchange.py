"""Messages about graph JSON of other tools."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_plugin.errors import GraphError, PahqError, ResultError
from tests.helpers.interchange import TODAYS, changed, one_block, random_result, read_text
from tests.helpers.refused import refused

MLP = ("edges", "a0.h0->m0")

CHANGES: list[tuple[tuple[str, ...], Any, type[PahqError], str]] = [
    (("cfg", "n_layers"), ..., ResultError, ": cfg lacks n_layers; this model's is 1"),
    (("cfg", "n_layers"), "1", ResultError, ': cfg: n_layers is "1"; expected a value like 1'),
    (
        ("cfg", "n_layers"),
        2,
        ResultError,
        " belongs to another model: cfg: n_layers is 2, this model's is",
    ),
    (("nodes", "x"), True, GraphError, ': no node "x" in this model; nodes are named like '),
    (("cfg",), [], ResultError, ": cfg is a list; expected an object"),
    (("cfg",), ..., ResultError, " lacks cfg; expected an object with cfg, nodes and edges"),
    ((*MLP, "in_graph"), 1, ResultError, ": edges: a0.h0->m0: in_graph is 1; expected true or false"),
    (("neurons",), {}, ResultError, ": neurons chooses single neurons; expected a graph of edges"),
]


@pytest.mark.parametrize(
    ("path", "value", "error", "message"), CHANGES, ids=[case[-1] for case in CHANGES]
)
def test_graphs_of_other_tools(
    path: tuple[str, ...], value: Any, error: type[PahqError], message: str, tmp_path: Path
) -> None:
    text = json.dumps(changed(json.loads(TODAYS), path, value))
    with refused(error, f"theirs.json{message}"):
        read_text(text, tmp_path)


def test_files_of_graphs(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with refused(ResultError, f"no file at {file}; expected JSON as EAP-IG's Graph.to_json writes it"):
        read_graph_json(file, one_block())
    with refused(ResultError, "theirs.json holds 2,000,002 bytes; a graph of 8 edges has at most "):
        read_text(" " * 2_000_000 + "{}", tmp_path)
    with refused(ResultError, 'is not readable JSON: key "a" appears twice in one object'):
        read_text('{"a": 1, "a": 1}', tmp_path)
    with refused(
        ResultError, "takes part, but this model has no MLPs; expected score 0 and in_graph fal"
    ):
        read_text(TODAYS, tmp_path, one_block(attn_only=True))


def test_results_that_no_graph_can_hold(tmp_path: Path) -> None:
    result = random_result(one_block())
    with refused(ResultError, f"{tmp_path} is a folder; a JSON graph is written as a file"):
        write_graph_json(result, tmp_path)
    first, *others = result.decisions
    endless = dataclasses.replace(first, effect=math.inf)
    with refused(ResultError, f"the effect of {first.edge} is inf; expected a finite number"):
        write_graph_json(dataclasses.replace(result, decisions=(endless, *others)), tmp_path / "g.json")
    message = "the result holds 7 decisions on 7 edges; the model has 8, each decided once"
    with refused(ResultError, message):
        write_graph_json(dataclasses.replace(result, decisions=tuple(others)), tmp_path / "g.json")
