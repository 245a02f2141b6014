"""Names of nodes and edges in graphs of EAP-IG, and the corresponding host edges.

Nodes are ``input``, ``a0.h1`` (block 0, head 1), ``m0`` and ``logits``. Edges are named ``a0.h1->m0``,
or ``input->a0.h1<q>`` into ``q``, ``k`` or ``v`` of a head (hannamw/EAP-IG, ``src/eap/graph.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

from pahq_plugin.errors import ModelError
from pahq_plugin.host import Edge, Node, PatchableModel
from pahq_plugin.host.graph import block, kind, slot


def graph_config(model: PatchableModel) -> dict[str, int | bool]:
    """Return a graph's ``cfg`` for a model: everything that determines names of nodes and edges."""
    if not isinstance(model, PatchableModel):
        raise ModelError(
            f"model is a {type(model).__name__}, not a PatchableModel; "
            "wrap it with auto_circuit.utils.graph_utils.patchable_model(...)"
        )
    if not model.is_transformer:
        raise ModelError("model is not a transformer; JSON graphs have edges of heads and MLPs only")
    if not model.is_factorized:
        raise ModelError("model is not factorized; call patchable_model(..., factorized=True)")
    if not model.separate_qkv:
        raise ModelError(
            "separate_qkv=False: JSON graphs have edges into query, key and value of each head; "
            "call patchable_model(..., separate_qkv=True)"
        )
    if model.seq_len is not None:
        raise ModelError(
            f"the model has edges of single positions (seq_len={model.seq_len}), but JSON graphs have "
            "edges for all positions; call patchable_model(..., seq_len=None)"
        )
    cfg = model.cfg
    return {
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "parallel_attn_mlp": cfg.parallel_attn_mlp,
        "d_model": cfg.d_model,
    }


def node_names(cfg: Mapping[str, int]) -> list[str]:
    """Return the names of all nodes, in the order of a graph."""
    names = ["input"]
    for layer in range(cfg["n_layers"]):
        names += [*_heads(cfg, layer), f"m{layer}"]
    return [*names, "logits"]


def edge_names(cfg: Mapping[str, int], *, mlps: bool = True) -> list[str]:
    """Return the names of all edges, in the order of a graph: block by block, then by source.

    Their graphs always have the edges into and out of MLPs; ``mlps=False`` leaves them out.
    """
    names: list[str] = []
    before = ["input"]
    for layer in range(cfg["n_layers"]):
        heads, mlp = _heads(cfg, layer), [f"m{layer}"] if mlps else []
        inputs = [f"{head}<{letter}>" for head in heads for letter in "qkv"]
        beside, behind = (mlp, []) if cfg["parallel_attn_mlp"] else ([], mlp)
        names += [f"{source}->{dest}" for source in before for dest in inputs + beside]
        names += [f"{source}->{dest}" for source in before + heads for dest in behind]
        before = before + heads + mlp
    return names + [f"{source}->logits" for source in before]


def node_name(node: Node) -> str:
    """Return the name of a host node; for a node that the graphs do not have, the host's name."""
    which = kind(node)
    if which == "head":
        return f"a{block(node)}.h{node.head_idx}"
    if which == "mlp":
        return f"m{block(node)}"
    return {"input": "input", "output": "logits"}.get(which, node.name)


def host_edges(model: PatchableModel) -> dict[str, Edge]:
    """Return name in a graph -> host edge, for all edges of a plain transformer."""
    edges = {_edge_name(edge): edge for edge in model.edges}
    names = edge_names(graph_config(model), mlps=not model.cfg.attn_only)
    if edges.keys() != set(names) or len(edges) != len(model.edges):
        raise ModelError(
            f"the model's {len(model.edges)} edges are not the {len(names)} of a plain transformer of "
            "its shape; JSON graphs have edges of heads and MLPs only"
        )
    return edges


def _heads(cfg: Mapping[str, int], layer: int) -> list[str]:
    return [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]


def _edge_name(edge: Edge) -> str:
    suffix = f"<{slot(edge.dest)}>" if kind(edge.dest) == "head" else ""
    return f"{node_name(edge.src)}->{node_name(edge.dest)}{suffix}"
