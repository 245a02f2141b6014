"""Names of nodes and edges, against a reference written after EAP-IG's documentation; models whose
edges have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_exporters.interchange.names import edge_names, graph_config, host_edges, node_name, node_names
from pahq_plugin.errors import ModelError
from pahq_plugin.results.result import Discovery, Stats
from tests.helpers.interchange import SEARCH, TODAYS, host_name, refused, their_names
from tests.helpers.replay import canonical_order
from tests.helpers.small import patchable, small_model, transformer


def test_the_reference_has_the_published_numbers_of_edges() -> None:
    """``EDGE_COUNTS`` of MIB's evaluation.py; the shapes are those of the models named there."""
    published = {(12, 12): 32_491, (24, 14): 179_749, (26, 8): 74_218, (6, 4): 1_108}
    for (n_layers, n_heads), count in published.items():
        cfg = {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": False}
        assert len(their_names(cfg)[1]) == count


def test_host_and_reference_agree_on_what_an_edge_is() -> None:
    """Otherwise names could be mixed up in one way by the writer and the reader."""
    model = small_model("parallel")
    assert {host_name(edge) for edge in model.edges} == their_names(model.cfg.to_dict())[1]


@pytest.mark.parametrize("kind", ["layer_norm", "parallel"])
def test_names_are_those_of_the_reference(kind: str) -> None:
    """Names stand for the edges of a model one to one, and nodes for its nodes."""
    model = small_model(kind)
    nodes, edges = their_names(model.cfg.to_dict())
    cfg = graph_config(model)
    assert set(node_names(cfg)) == {node_name(node) for node in model.nodes} == nodes
    assert sorted(edge_names(cfg)) == sorted(edges)
    assert {name: host_name(edge) for name, edge in host_edges(model).items()} == {e: e for e in edges}


def test_a_model_of_attention_alone_has_no_names_of_mlps() -> None:
    model = small_model(attn_only=True)
    names = edge_names(graph_config(model), mlps=False)
    assert set(names) == host_edges(model).keys() and not any("m0" in name for name in names)
    assert set(names) < set(edge_names(graph_config(model)))


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


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "positions": (single_positions, "seq_len=6"),
    "not separated": (not_separated, "separate_qkv=False"),
    "not factorized": (not_factorized, "factorized"),
    "no transformer": (no_transformer, "transformer"),
    "one edge more": (with_another_edge, "111"),
    "another node": (with_a_stranger, "110"),
    "not patchable": (transformer, "HookedTransformer"),
    "nothing": (lambda: None, "NoneType"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_whose_edges_the_format_cannot_hold_is_refused(kind: str, tmp_path: Path) -> None:
    make, word = MODELS[kind]
    model = make()
    result = Discovery((), SEARCH, Stats(), model)
    refused(ModelError, lambda: write_graph_json(result, tmp_path / "graph.json"), word)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "graph.json").write_text(TODAYS)
    refused(ModelError, lambda: read_graph_json(tmp_path / "graph.json", model), word)
