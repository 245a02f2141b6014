"""Policies: which parts of the model run in high precision for the edge under test.

=====================  ===========================================================================
``investigated_head``  the destination's head: Q, K, V and output projection (PAHQ, Wang et al.
                       2025). For an edge into an MLP it is that MLP, for an edge into the output
                       the unembedding.
``investigated_path``  as above, plus the source's head or MLP
``uniform``            nothing: plain round-to-nearest quantisation (RTN-Q)
``full``               everything
``hybrid``             as ``investigated_head``, with formats per block and part that a calibration
                       run chooses (`pahq_plugin.discovery.hybrid`)
=====================  ===========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pahq_plugin.choices import Policy
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge, Node, graph
from pahq_plugin.precision.config import PrecisionConfig, part_and_layer


@dataclass(frozen=True)
class HighParts:
    """The parts in high precision.

    Attributes:
        heads: ``(layer, head)`` of attention heads.
        mlps: layers of MLPs.
        unembed: whether the unembedding is high.
        everything: whether the whole model is high, whatever the others say.
    """

    heads: frozenset[tuple[int, int]] = frozenset()
    mlps: frozenset[int] = frozenset()
    unembed: bool = False
    everything: bool = False

    def __or__(self, other: HighParts) -> HighParts:
        return HighParts(
            self.heads | other.heads,
            self.mlps | other.mlps,
            self.unembed or other.unembed,
            self.everything or other.everything,
        )

    def heads_of(self, layer: int) -> list[int]:
        """Return the heads of one layer, ascending."""
        return sorted(head for at, head in self.heads if at == layer)


NOTHING = HighParts()
EVERYTHING = HighParts(everything=True)


def high_parts(policy: Policy, edge: Edge) -> HighParts:
    """Return the parts that ``policy`` keeps in high precision while ``edge`` is under test."""
    if policy == "full":
        return EVERYTHING
    if policy == "uniform":
        return NOTHING
    destination = part_of(edge.dest)
    return destination | part_of(edge.src) if policy == "investigated_path" else destination


def part_of(node: Node) -> HighParts:
    """Return the head or MLP that ``node`` belongs to, the unembedding for the output, or nothing for
    the input."""
    kind = graph.kind(node)
    if kind == "head":
        return HighParts(heads=frozenset({(graph.block(node), node.head_idx or 0)}))
    if kind == "mlp":
        return HighParts(mlps=frozenset({graph.block(node)}))
    return HighParts(unembed=True) if kind == "output" else NOTHING


def check_parts(cfg: Any, precision: PrecisionConfig) -> None:
    """Refuse ``precision.formats`` that name a part which a model of configuration ``cfg`` lacks."""
    for name, _ in precision.formats:
        part, layer = part_and_layer(name)
        if layer is not None and layer >= cfg.n_layers:
            raise ConfigError(f"formats: {name!r}: the model has blocks 0 to {cfg.n_layers - 1}")
        if part == "mlp" and cfg.attn_only:
            raise ConfigError(f"formats: {name!r}: this attention-only model has no MLP; leave it out")
