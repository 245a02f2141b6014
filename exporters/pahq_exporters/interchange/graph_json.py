"""Write and read circuits as the JSON graphs of EAP-IG and the MIB circuit track.

Both tools store a circuit as ``Graph.to_json`` of hannamw/EAP-IG (``src/eap/graph.py``) writes it::

    {"cfg": {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
     "nodes": {"input": {"in_graph": true}, "a0.h1": {...}, "m0": {...}, ..., "logits": {...}},
     "edges": {"input->a0.h1<q>": {"score": 0.1, "in_graph": true}, "a0.h1->m0": {...}, ...}}

For both, a circuit of n edges is the n edges of largest ``abs(score)`` (``apply_topn``; MIB also
evaluates the n of largest score, ``absolute=False``). The score written is therefore the prune score,
not the effect: an edge whose removal helps has a large negative effect but is not in the circuit. Scores
are FP32, as in their tensors, and their top ``len(circuit)`` are exactly the edges marked ``in_graph``.
When they evaluate a graph they first drop edges that are on no path from ``input`` to ``logits``: with
patching, those change no output.

Their ``input`` is the token embedding, ours the residual stream before the first block: the same if
clean and corrupt prompts are patched position by position. Their graph has an MLP in every block; for an
attention-only model those are written with score 0, outside the graph, and ignored when read. Their
edges into heads always separate query, key and value, and are for all positions at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pahq_exporters.interchange.names import edge_names, graph_config, host_edges, node_name, node_names
from pahq_plugin.errors import ConfigError, GraphError, ResultError
from pahq_plugin.host import Edge, PatchableModel, PruneScores
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Discovery, Stats
from pahq_plugin.system.files import write_text

LARGEST = float(torch.finfo(torch.float32).max)
"""The largest score: their graphs hold scores in FP32."""

BASE_BYTES, BYTES_PER_EDGE = 2**20, 2**10
"""Larger files are not read; an edge takes about 70 bytes."""


SETTINGS: dict[str, Any] = {"method": "graph-json", "scored": True, "ablation": "unknown", "seed": 0}
"""Settings of a result made from a file, which does not say how the circuit was found."""


@dataclass(frozen=True)
class GraphJson:
    """The content of a JSON graph, as edges of a model.

    Attributes:
        circuit: the host edges marked ``in_graph``.
        scores: the score of every edge of the model, in canonical order; 0 if the file has none.
    """

    circuit: frozenset[Edge]
    scores: Mapping[Edge, float]

    @property
    def values(self) -> Mapping[Edge, float]:
        """`scores`; if all are 0, 1 for edges of the circuit and 0 for others."""
        if any(self.scores.values()):
            return self.scores
        return {edge: float(edge in self.circuit) for edge in self.scores}

    def prune_scores(self, model: PatchableModel) -> PruneScores:
        """Return `values` as host prune scores, FP32 (FP64 for an FP64 model).

        In a file of this package the top ``len(circuit)`` by magnitude are the circuit; in a file of
        another tool they are if the circuit was chosen by ``apply_topn``.

        There is one tensor per destination module: ``[head, src]`` into heads, ``[src]`` elsewhere.
        """
        scores = model.new_prune_scores()
        dtype = torch.promote_types(next(iter(scores.values())).dtype, torch.float32)
        scores = {name: score.to(dtype) for name, score in scores.items()}
        for edge, value in self.values.items():
            scores[edge.dest.module_name][edge.patch_idx] = value
        return scores

    def discovery(self, model: PatchableModel, n_edges: int | None = None) -> Discovery:
        """Return the file as a result, which can be saved, shown, compared and run.

        Its decisions are ranked by the magnitude of their `values`. The circuit is the edges that the
        file marks, even if edges of larger scores were pruned because they are on no path.

        Args:
            model: the model that the file was read for.
            n_edges: take the edges of largest magnitude (and those that tie with the last) instead of
                those marked ``in_graph``. Files that hold only scores mark no edge, or every edge.

        Raises:
            ConfigError: ``n_edges`` is not between 1 and the model's number of edges.
        """
        if n_edges is not None and not 1 <= n_edges <= len(self.scores):
            raise ConfigError(
                f"n_edges={n_edges} must be from 1 to {len(self.scores)}, the model's edges"
            )
        values, circuit = self.values, self.circuit
        ranked = sorted(values, key=lambda edge: -abs(values[edge]))
        if n_edges is not None:
            least = abs(values[ranked[n_edges - 1]])
            circuit = frozenset(edge for edge in ranked if abs(values[edge]) >= least)
        decisions = tuple(Decision(edge, values[edge], edge in circuit, exact=True) for edge in ranked)
        return Discovery(decisions, dict(SETTINGS), Stats(), model)


def write_graph_json(result: Discovery, path: str | Path) -> Path:
    """Write a circuit as a JSON graph that ``eap.graph.Graph.from_json`` reads, and return the path.

    Edges have their prune score (see the module) and are ``in_graph`` if they were kept. Nodes are
    ``in_graph`` if a kept edge touches them, and ``logits`` always, as in their graphs. Equal results
    give equal bytes, and the file is replaced atomically.

    Args:
        result: found in a transformer with ``separate_qkv=True`` and edges for all positions at once.
        path: the file; folders are made as needed.

    Raises:
        ModelError: the format cannot represent the model's edges.
        ResultError: an effect is not finite, an edge was not decided exactly once, or ``path`` is a
            folder.
    """
    file, model = Path(path), result.model
    cfg, edges = graph_config(model), host_edges(model)
    if file.is_dir():
        raise ResultError(f"{file} is a folder; a JSON graph is written as a file")
    _check_decisions(result)
    scores, circuit = _fp32_scores(result), result.circuit
    touched = {"logits"} | {node_name(node) for edge in circuit for node in (edge.src, edge.dest)}
    nodes = {name: {"in_graph": name in touched} for name in node_names(cfg)}
    entries = {name: {"score": 0.0, "in_graph": False} for name in edge_names(cfg)}
    for name, edge in edges.items():
        entries[name] = {"score": scores[edge], "in_graph": edge in circuit}
    opening = f'{{"cfg": {json.dumps(cfg)},\n'
    write_text(file, opening + _lines("nodes", nodes) + ",\n" + _lines("edges", entries) + "}\n")
    return file


def read_graph_json(path: str | Path, model: PatchableModel) -> GraphJson:
    """Read a JSON graph of this package, EAP-IG (current or first version) or the MIB circuit track.

    As in those tools, only edges count. An edge missing from the file has score 0 and is not in the
    graph, and an edge without a score (or with ``null``) has score 0. Of nodes, only names and types are
    checked. Other keys are ignored.

    Args:
        path: the file.
        model: the model that the graph belongs to; edges are looked up in it.

    Raises:
        ModelError: the format cannot represent the model's edges.
        GraphError: a node or an edge that the model does not have.
        ResultError: no such file, a damaged file, a model of another shape, or a choice of single
            neurons.
    """
    file = Path(path)
    cfg, edges = graph_config(model), host_edges(model)
    graph = _parsed(file, len(edges))
    _check_cfg(file, _object(file, graph, "cfg"), cfg)
    _check_nodes(file, _object(file, graph, "nodes"), node_names(cfg))
    entries = _object(file, graph, "edges")
    _check_known(file, "edge", entries, edge_names(cfg))
    scores = dict.fromkeys(canonical_edges(model), 0.0)
    circuit: set[Edge] = set()
    for name in entries:
        where = f"edges: {name}"
        entry = _object(file, entries, name, where)
        score, in_graph = _score(file, entry, where), _flag(file, entry, "in_graph", where)
        if name in edges:
            scores[edges[name]] = score
            if in_graph:
                circuit.add(edges[name])
        elif score or in_graph:
            raise ResultError(
                f"{file}: {where} takes part, but this model has no MLPs; "
                "expected score 0 and in_graph false"
            )
    return GraphJson(frozenset(circuit), scores)


# Writing -------------------------------------------------------------------------------------------


def _check_decisions(result: Discovery) -> None:
    """Refuse effects that are not finite, and edges that were not decided exactly once."""
    for decision in result.decisions:
        if not math.isfinite(decision.effect):
            raise ResultError(
                f"the effect of {decision.edge} is {decision.effect}; expected a finite number"
            )
    decided = {decision.edge for decision in result.decisions}
    if decided != result.model.edges or len(decided) != len(result.decisions):
        raise ResultError(
            f"the result holds {len(result.decisions)} decisions on {len(decided)} edges; "
            f"the model has {len(result.model.edges)}, each decided once"
        )


def _fp32_scores(result: Discovery) -> dict[Edge, float]:
    """Return FP32 prune scores whose top ``len(circuit)`` by magnitude are the circuit.

    Those of an FP64 model are rounded so that kept edges stay above 0 and removed ones below them.
    """
    prune_scores, decisions = result.prune_scores, result.decisions
    exact = torch.stack([d.edge.prune_score(prune_scores) for d in decisions]).cpu()  # edge
    kept = torch.tensor([d.kept for d in decisions])  # edge
    zero = torch.zeros(())
    size = exact.abs().float().clamp(max=LARGEST)
    size[kept] = size[kept].clamp(min=float(torch.nextafter(zero, zero + 1)))
    if kept.any():
        size[~kept] = size[~kept].clamp(max=float(torch.nextafter(size[kept].min(), zero)))
    values = size.copysign(exact).tolist()
    return {d.edge: value for d, value in zip(decisions, values, strict=True)}


def _lines(key: str, entries: Mapping[str, Any]) -> str:
    """Format a JSON object under its key, one entry per line."""
    lines = (f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    return f' "{key}": {{\n' + ",\n".join(lines) + "\n }"


# Reading -------------------------------------------------------------------------------------------


def _parsed(file: Path, n_edges: int) -> dict[str, Any]:
    """Parse a file of at most so many edges to its outermost object."""
    if not file.is_file():
        raise ResultError(f"no file at {file}; expected JSON as EAP-IG's Graph.to_json writes it")
    largest = BASE_BYTES + BYTES_PER_EDGE * n_edges
    try:
        size = file.stat().st_size
        if size > largest:
            raise ResultError(
                f"{file} holds {size:,} bytes; a graph of {n_edges:,} edges has at most {largest:,}"
            )
        # Not `files.read_json`: values that do not concern edges may be NaN.
        graph = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(graph, dict):
        raise ResultError(f"{file} holds {_shown(graph)}; expected an object with cfg, nodes and edges")
    _check_no_neurons(file, graph, "")
    return graph


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {_shown(key)} appears twice in one object")
        found[key] = value
    return found


def _check_no_neurons(file: Path, entry: Mapping[str, Any], where: str) -> None:
    """Refuse a graph that chooses single neurons of a node, which host edges cannot."""
    for key in ("neurons", "neurons_scores"):
        if key in entry:
            raise ResultError(f"{file}: {where}{key} chooses single neurons; expected a graph of edges")


def _check_cfg(file: Path, found: Mapping[str, Any], cfg: Mapping[str, int]) -> None:
    """Refuse a ``cfg`` that is not the model's; only ``d_model`` may be missing."""
    for key, right in cfg.items():
        if key not in found and key == "d_model":  # absent in the first version
            continue
        if key not in found:
            raise ResultError(f"{file}: cfg lacks {key}; this model's is {_shown(right)}")
        if type(found[key]) is not type(right):
            raise ResultError(
                f"{file}: cfg: {key} is {_shown(found[key])}; expected a value like {_shown(right)}"
            )
        if found[key] != right:
            raise ResultError(
                f"{file} belongs to another model: cfg: {key} is {_shown(found[key])}, "
                f"this model's is {_shown(right)}"
            )


def _check_nodes(file: Path, nodes: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse unknown nodes, and entries other than ``{"in_graph": bool}`` or (first version) a bool."""
    _check_known(file, "node", nodes, names)
    for name, value in nodes.items():
        if not isinstance(value, bool):
            where = f"nodes: {name}"
            entry = _object(file, nodes, name, where)
            _flag(file, entry, "in_graph", where)
            _check_no_neurons(file, entry, f"{where}: ")


def _check_known(file: Path, what: str, entries: Iterable[str], names: Iterable[str]) -> None:
    """Refuse an entry that is not in ``names``."""
    known = dict.fromkeys(names)
    for name in entries:
        if name not in known:
            raise GraphError(
                f"{file}: no {what} {_shown(name)} in this model; {what}s are named like "
                f"{', '.join(list(known)[:2])}"
            )


def _object(file: Path, parent: Mapping[str, Any], key: str, where: str | None = None) -> dict[str, Any]:
    if key not in parent:
        raise ResultError(f"{file} lacks {key}; expected an object with cfg, nodes and edges")
    if not isinstance(parent[key], dict):
        raise ResultError(f"{file}: {where or key} is {_shown(parent[key])}; expected an object")
    return parent[key]


def _flag(file: Path, entry: Mapping[str, Any], key: str, where: str) -> bool:
    if not isinstance(entry.get(key), bool):
        found = f"is {_shown(entry[key])}" if key in entry else "is missing"
        raise ResultError(f"{file}: {where}: {key} {found}; expected true or false")
    return entry[key]


def _score(file: Path, entry: Mapping[str, Any], where: str) -> float:
    value = entry.get("score")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ResultError(
            f"{file}: {where}: score is {_shown(value)}; expected a finite number that FP32 holds"
        )
    return float(value)


def _shown(value: object) -> str:
    """Format a JSON value in one short line."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
