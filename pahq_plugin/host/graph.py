"""Nodes and edges of the host's computation graph, in an order that never changes.

The host keeps its edges in a ``set``, whose order differs from process to process. Here the order
is canonical: destinations from the output back, and the sources of one destination from the input
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pahq_plugin.errors import GraphError
from pahq_plugin.host.types import DestNode, Edge, Node, PatchableModel, SrcNode
from pahq_plugin.labels import NodeKind, edge_label

Slot = Literal["q", "k", "v", "attn"]


def kind(node: Node) -> NodeKind:
    """What part of a transformer ``node`` is; ``"other"`` in a model that is no transformer."""
    module = node.module_name
    if node.head_idx is not None:
        return "head"
    if module.endswith((".hook_mlp_in", ".hook_mlp_out")):
        return "mlp"
    if module.endswith(".hook_resid_pre"):
        return "input"
    return "output" if module.endswith(".hook_resid_post") else "other"


def block(node: Node) -> int:
    """Index of the transformer block whose forward uses ``node``."""
    return int(node.module_name.split(".")[1])


def slot(dest: DestNode) -> Slot:
    """Which input of its head ``dest`` is: query, key, value, or all three in one."""
    letter = dest.module_name.rpartition(".hook_")[2][0]
    return letter if letter in "qkv" else "attn"  # type: ignore[return-value]


def head(node: Node) -> tuple[int, int] | None:
    """``(layer, head)`` of an attention node, ``None`` for any other."""
    return (block(node), node.head_idx) if node.head_idx is not None else None


def destination_order(dest: DestNode) -> tuple[int, int, int, int]:
    """Sort key of the canonical order of destinations."""
    is_head = dest.head_idx is not None
    letter = dest.name[-1] if is_head else ""
    return (-dest.layer, int(is_head), dest.head_idx or 0, "QKV".find(letter))


def canonical_edges(model: PatchableModel) -> list[Edge]:
    """All edges: destinations from the output back (host layer descending, MLP before heads, head
    index, then Q, K, V), then ``seq_idx`` descending, then ``src_idx`` ascending."""
    return sorted(
        model.edges,
        key=lambda e: (destination_order(e.dest), -(e.seq_idx or 0), e.src.src_idx),
    )


def sources(model: PatchableModel) -> list[SrcNode]:
    """Source nodes by ``src_idx``."""
    return sorted(model.srcs, key=lambda src: src.src_idx)


def find_edge(model: PatchableModel, name: str, seq_idx: int | None = None) -> Edge:
    """The edge of that name and position.

    Raises:
        GraphError: there is none; the message says what names look like in this model.
    """
    edge = model.edge_name_dict.get(seq_idx, {}).get(name)
    if edge is None:
        example = edge_label(canonical_edges(model)[-1])
        label = name if seq_idx is None else f"{name} @{seq_idx}"
        raise GraphError(f"no edge {label!r} in this model; edges are named like {example!r}")
    return edge


def check_order(model: PatchableModel, order: Sequence[Edge]) -> list[Edge]:
    """``order`` as a list.

    Raises:
        GraphError: it is not a permutation of the model's edges; names the first edge at fault.
    """
    if isinstance(order, (set, frozenset)):  # model.edges is one; a process's hashes would order it
        raise GraphError("order is a set, which has none; give a list, or None for the canonical order")
    if not isinstance(order, Iterable):
        raise GraphError(f"order is a {type(order).__name__}; expected all edges of the model")
    order = list(order)  # it may be one that can be gone through once
    seen: set[Edge] = set()
    for edge in order:
        if edge not in model.edges:
            raise GraphError(f"order holds {edge_label_of(edge)}, which is no edge of this model")
        if edge in seen:
            raise GraphError(f"order holds the edge {edge_label(edge)!r} twice")
        seen.add(edge)
    if len(seen) != len(model.edges):
        missing = next(e for e in canonical_edges(model) if e not in seen)
        raise GraphError(
            f"order holds {len(seen)} of {len(model.edges)} edges; "
            f"{edge_label(missing)!r} is the first missing one"
        )
    return order


def edge_label_of(value: object) -> str:
    """A printable name of something that should be an edge."""
    return repr(edge_label(value)) if isinstance(value, Edge) else repr(value)
