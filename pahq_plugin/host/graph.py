"""Nodes and edges of the host's computation graph, in a canonical order.

The host keeps its edges in a ``set``, whose order differs between processes. The canonical order goes
through destinations from the output back, and through each destination's sources from the input on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pahq_plugin.errors import GraphError
from pahq_plugin.host.types import DestNode, Edge, Node, PatchableModel, SrcNode
from pahq_plugin.labels import NodeKind, edge_label

Slot = Literal["q", "k", "v", "attn"]


def kind(node: Node) -> NodeKind:
    """Return the kind of ``node``; ``"other"`` outside transformers."""
    module = node.module_name
    if node.head_idx is not None:
        return "head"
    if module.endswith((".hook_mlp_in", ".hook_mlp_out")):
        return "mlp"
    if module.endswith(".hook_resid_pre"):
        return "input"
    return "output" if module.endswith(".hook_resid_post") else "other"


def block(node: Node) -> int:
    """Return the index of the transformer block whose forward uses ``node``."""
    return int(node.module_name.split(".")[1])


def slot(dest: DestNode) -> Slot:
    """Return which input of its head ``dest`` is: query, key, value, or all three in one."""
    letter = dest.module_name.rpartition(".hook_")[2][0]
    return letter if letter in "qkv" else "attn"  # type: ignore[return-value]


def head(node: Node) -> tuple[int, int] | None:
    """Return ``(layer, head)`` of a head node, ``None`` for any other node."""
    return (block(node), node.head_idx) if node.head_idx is not None else None


def canonical_edges(model: PatchableModel) -> list[Edge]:
    """Return all edges in canonical order.

    Destinations from the output back (host layer descending, MLP before heads, head index, then Q, K,
    V), then ``seq_idx`` descending, then ``src_idx`` ascending.
    """

    def place(edge: Edge) -> tuple[int, ...]:
        dest = edge.dest
        is_head = dest.head_idx is not None
        letter = "QKV".find(dest.name[-1] if is_head else "")
        at = (-dest.layer, int(is_head), dest.head_idx or 0, letter)
        return (*at, -(edge.seq_idx or 0), edge.src.src_idx)

    return sorted(model.edges, key=place)


def sources(model: PatchableModel) -> list[SrcNode]:
    """Return the source nodes ordered by ``src_idx``."""
    return sorted(model.srcs, key=lambda src: src.src_idx)


def find_edge(model: PatchableModel, name: str, seq_idx: int | None = None) -> Edge:
    """Return the edge with this name and position.

    Raises:
        GraphError: there is no such edge; the message shows what names look like in this model.
    """
    edge = model.edge_name_dict.get(seq_idx, {}).get(name)
    if edge is None:
        example = edge_label(canonical_edges(model)[-1])
        label = name if seq_idx is None else f"{name} @{seq_idx}"
        raise GraphError(f"no edge {label!r} in this model; edges are named like {example!r}")
    return edge


def check_order(model: PatchableModel, order: Sequence[Edge]) -> list[Edge]:
    """Return ``order`` as a list, if it is a permutation of the model's edges.

    Raises:
        GraphError: it is not; the message names the first edge at fault.
    """
    if isinstance(order, (set, frozenset)):  # such as model.edges; hashes would order it
        raise GraphError(
            "order is a set, which is unordered; give a list, or None for the canonical order"
        )
    if not isinstance(order, Iterable):
        raise GraphError(f"order is a {type(order).__name__}; expected all edges of the model")
    order = list(order)  # it may be an iterator
    seen: set[Edge] = set()
    for edge in order:
        if edge not in model.edges:
            raise GraphError(f"order holds {edge_label_of(edge)}, which is not an edge of this model")
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
    """Return a printable name of a value that should be an edge."""
    return repr(edge_label(value)) if isinstance(value, Edge) else repr(value)
