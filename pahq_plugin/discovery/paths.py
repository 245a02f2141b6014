"""Edges of a circuit that lie on a path from the input to the output.

A circuit chosen by scores may hold edges whose source nothing in the circuit feeds, or whose destination
nothing reads. They carry no computation from input to output; EAP-IG and MIB drop them, too. Queries,
keys and values are inputs of one head, and positions are not told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pahq_plugin.host import Edge
from pahq_plugin.labels import Ends, ends


def on_paths(kept: Collection[Edge], edges: Iterable[Edge]) -> set[Edge]:
    """Return the edges of ``kept`` that lie on a path from a node without inputs to a node without
    readers, in a graph with all ``edges``."""
    links = {edge: ends(edge.name) for edge in kept}
    every = [ends(name) for name in {edge.name for edge in edges}]
    read, fed = {link.source for link in every}, {link.destination for link in every}
    forward = _reached(read - fed, links.values())
    turned = [Ends(link.destination, link.source, None) for link in links.values()]
    backward = _reached(fed - read, turned)
    return {
        edge for edge, link in links.items() if link.source in forward and link.destination in backward
    }


def _reached(starts: set[str], links: Iterable[Ends]) -> set[str]:
    """Return the nodes that can be reached from ``starts``."""
    following: dict[str, list[str]] = {}
    for link in links:
        following.setdefault(link.source, []).append(link.destination)
    reached, ahead = set(starts), list(starts)
    while ahead:
        new = [node for node in following.get(ahead.pop(), ()) if node not in reached]
        reached.update(new)
        ahead += new
    return reached
