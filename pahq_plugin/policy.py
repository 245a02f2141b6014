"""Policies: which parts of the model run in high precision for the edge under test.

=====================  ===========================================================================
``investigated_head``  the destination's head: Q, K, V and output projection (PAHQ, Wang et al.
                       2025). An edge into an MLP has no head: that MLP is high. An edge into the
                       output makes nothing high, since the unembedding always is.
``investigated_path``  as above, and the source's head or MLP too
``uniform``            nothing: plain round-to-nearest quantisation (RTN-Q)
``full``               everything
=====================  ===========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from pahq_plugin.config import Policy
from pahq_plugin.host import Edge, Node, graph


@dataclass(frozen=True)
class HighParts:
    """The parts in high precision.

    Attributes:
        heads: ``(layer, head)`` of attention heads.
        mlps: layers of MLPs.
        everything: the whole model, whatever the two others say.
    """

    heads: frozenset[tuple[int, int]] = frozenset()
    mlps: frozenset[int] = frozenset()
    everything: bool = False

    def __or__(self, other: HighParts) -> HighParts:
        return HighParts(
            self.heads | other.heads, self.mlps | other.mlps, self.everything or other.everything
        )

    def heads_of(self, layer: int) -> list[int]:
        """Heads of one layer, ascending."""
        return sorted(head for at, head in self.heads if at == layer)


NOTHING = HighParts()
EVERYTHING = HighParts(everything=True)


def high_parts(policy: Policy, edge: Edge) -> HighParts:
    """What ``policy`` keeps in high precision while ``edge`` is under test."""
    if policy == "full":
        return EVERYTHING
    if policy == "uniform":
        return NOTHING
    destination = part_of(edge.dest)
    return destination | part_of(edge.src) if policy == "investigated_path" else destination


def part_of(node: Node) -> HighParts:
    """The head or MLP that ``node`` belongs to; nothing for the input and the output."""
    kind = graph.kind(node)
    if kind == "head":
        return HighParts(heads=frozenset({(graph.block(node), node.head_idx or 0)}))
    if kind == "mlp":
        return HighParts(mlps=frozenset({graph.block(node)}))
    return NOTHING
