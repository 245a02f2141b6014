"""Graph JSON: results to write, files of the other tools, and what is left of a damaged one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.prune import run_circuits
from auto_circuit.types import Edge, PatchType
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_exporters.interchange.graph_json import GraphJson, read_graph_json
from pahq_plugin.errors import PahqError
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Discovery, Stats
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader, patchable, small_model, transformer

SEARCH = {"method": "acdc", "threshold": 0.01, "metric": "mse", "ablation": "resample",
          "scored": False, "seed": 0, "precision": None}  # fmt: skip


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


def assert_runs_as_the_circuit(read: GraphJson) -> None:
    model = small_model()
    run_circuits(model, loader(), [len(read.circuit)], read.prune_scores(model), PatchType.TREE_PATCH)
    patched = {edge for edge in model.edges if edge.patch_mask(model)[edge.patch_idx] != 0}
    assert patched == model.edges - read.circuit


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


def read_text(text: str, folder: Path, model: PatchableModel | None = None) -> GraphJson:
    (folder / "theirs.json").write_text(text, encoding="utf-8")
    return read_graph_json(folder / "theirs.json", model or one_block())


def refused(error: type[PahqError], call: Callable[[], object], *words: str) -> None:
    """``call`` raises exactly ``error``, in one line that holds ``words``."""
    with pytest.raises(PahqError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert len(message.splitlines()) == 1 and len(message) < 400, message
    for word in words:
        assert word in message, message


EDGE = ("edges", "a0.h0->m0")


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
