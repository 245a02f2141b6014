"""Description of an exported graph: nodes, edges, inputs and precision, kept in the file's metadata.

Only the standard library is imported, so that a deployment can read it without PyTorch.

The host's factorized graph is regular: a destination reads the first ``reads`` sources. An edge is
therefore any pair of a destination and one of these sources, named as in the host: ``"A0.1->MLP 2"``,
``"MLP 0->A1.3.Q"``, ``"Resid Start->Resid End"``. Sources are in the order of the host's ``src_idx``.
Destinations are ordered by block; within a block, heads before the MLP, and Q of all heads before K
before V. ``Resid End`` is last. An edge of a single position is named ``"A0.1->MLP 2 @3"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from pahq_plugin.errors import ExportError, GraphError, one_line
from pahq_plugin.system.files import parse_json

METADATA_KEY = "pahq"
FORMAT_VERSION = 1

GraphKind = Literal["dense", "sweep"]
HighKind = Literal["input", "fixed", "none"]

SLOTS = ("q", "k", "v", "attn", "mlp", "output")
"""Kinds of destinations; the sweep graph takes the index."""


@dataclass(frozen=True)
class Destination:
    """One destination node.

    Attributes:
        name: the host's name, such as ``"A0.1.Q"``.
        layer: the transformer block; the number of blocks for the output.
        slot: one of `SLOTS`.
        head: index of the head; -1 for an MLP or the output.
        reads: it reads sources ``0 .. reads - 1``.
    """

    name: str
    layer: int
    slot: str
    head: int
    reads: int


@dataclass(frozen=True)
class Description:
    """An exported graph.

    Attributes:
        graph: ``"dense"`` or ``"sweep"``.
        id: digest of all other fields; the file of FP32 heads has the same.
        source_model: name of the exported model. As in results, ``source_digest`` is the digest of its
            edges and weights, and ``source_configuration`` of all else that determines its output.
        n_layers: number of transformer blocks, with ``n_heads``, ``d_head`` and ``d_model``.
        n_ctx: longest prompt.
        seq_len: tokens of every prompt, for edges of single positions; otherwise ``None``.
        d_vocab: number of input tokens; ``d_vocab_out`` is the number of logits.
        start_layer: first block of the graph.
        n_earlier: number of sources before that block; 0 if the graph starts with tokens.
        positions: ``"all"``: logits at every position; ``"last"``: at the last, without a position
            axis; ``"not_first"``: at all but the first.
        high: how the head in FP32 is chosen: at run time, at export, or there is none.
        fixed_head: head ``(layer, head)`` chosen at export.
        sources: names of sources by index.
        destinations: destinations by index.
        precision: the `PrecisionConfig` as JSON values; ``None`` for FP32.
        versions: versions of the libraries that wrote the file.
        heads_file: name of the file of FP32 heads, in the folder of the graph.
    """

    graph: GraphKind
    id: str
    source_model: str
    source_digest: str
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    n_ctx: int
    seq_len: int | None
    d_vocab: int
    d_vocab_out: int
    start_layer: int
    n_earlier: int
    positions: str
    high: HighKind
    fixed_head: tuple[int, int] | None
    sources: tuple[str, ...]
    destinations: tuple[Destination, ...]
    precision: dict[str, Any] | None
    versions: dict[str, str]
    heads_file: str | None
    source_configuration: str = ""

    @cached_property
    def _source_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sources)}

    @cached_property
    def _destination_index(self) -> dict[str, int]:
        return {dest.name: i for i, dest in enumerate(self.destinations)}

    def edges(self) -> Iterator[str]:
        """Yield the names of all edges, ordered by destination, then by position (last first), then by
        source."""
        places = [None] if self.seq_len is None else range(self.seq_len - 1, -1, -1)
        for dest in self.destinations:
            for place in places:
                suffix = "" if place is None else f" @{place}"
                for name in self.sources[: dest.reads]:
                    yield f"{name}->{dest.name}{suffix}"

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return sum(dest.reads for dest in self.destinations) * (self.seq_len or 1)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """``[dest, src]``, or ``[pos, dest, src]`` for edges of single positions."""
        shape = (len(self.destinations), len(self.sources))
        return shape if self.seq_len is None else (self.seq_len, *shape)

    def index_of(self, edge: object) -> tuple[int, ...]:
        """Return an edge's index in a mask: ``(dest, src)``, or ``(pos, dest, src)``.

        Args:
            edge: a name such as ``"A0.1->MLP 2"``, or a host ``Edge``.

        Raises:
            GraphError: no such edge in this graph; the message says which end is wrong.
        """
        name = edge if isinstance(edge, str) else getattr(edge, "name", None)
        if not isinstance(name, str):
            raise GraphError(f"{edge!r} is not an edge; write one like {self._example()!r}")
        if isinstance(edge, str):
            name, at_sign, position = name.partition(" @")
            place = position if at_sign else None
        else:
            place = getattr(edge, "seq_idx", None)
        before = self._position(name, place)
        src, arrow, dest = name.partition("->")
        if not arrow:
            raise GraphError(f"{name!r} is not an edge; edges are named like {self._example()!r}")
        if src not in self._source_index:
            raise GraphError(f"edge {name!r}: no source {src!r} in this graph; {self._known()}")
        if dest not in self._destination_index:
            raise GraphError(f"edge {name!r}: no destination {dest!r} in this graph; {self._known()}")
        to, at = self._destination_index[dest], self._source_index[src]
        if at >= self.destinations[to].reads:
            raise GraphError(f"edge {name!r}: {dest} does not read {src}, which is not before it")
        return (*before, to, at)

    def _position(self, name: str, place: object) -> tuple[int, ...]:
        """Return ``(pos,)``, or ``()`` if edges have no positions."""
        if self.seq_len is None:
            if place is not None:
                raise GraphError(f"edge {name!r} @{place}: this graph patches all positions at once")
            return ()
        text = str(place)
        digits = text.isascii() and text.isdecimal() and len(text) <= len(str(self.seq_len))
        if not digits or str(int(text)) != text or int(text) >= self.seq_len:
            raise GraphError(
                f"edge {name!r}, position {place}: edges of this graph are of single positions; write "
                f"one of 0 to {self.seq_len - 1}, like {name + ' @0'!r}"
            )
        return (int(text),)

    def indices(self, edges: Iterable[object]) -> list[tuple[int, ...]]:
        """Return `index_of` each edge."""
        return [self.index_of(edge) for edge in edges]

    def check_head(self, head: object) -> tuple[int, int]:
        """Return ``head`` if it is a head ``(layer, head)`` of this graph."""
        pair = isinstance(head, (tuple, list)) and len(head) == 2
        if not pair or not all(type(part) is int for part in head):  # type: ignore[union-attr]
            raise GraphError(f"head {head!r} must be a pair (layer, head) of integers")
        layer, index = head  # type: ignore[misc]
        if not (self.start_layer <= layer < self.n_layers and 0 <= index < self.n_heads):
            raise GraphError(
                f"no head {index} in layer {layer}; this graph has layers {self.start_layer} to "
                f"{self.n_layers - 1} with heads 0 to {self.n_heads - 1}"
            )
        return layer, index

    def _example(self) -> str:
        return next(self.edges())

    def _known(self) -> str:
        return (
            f"sources are {self.sources[0]!r} to {self.sources[-1]!r}, "
            f"destinations {self.destinations[0].name!r} to {self.destinations[-1].name!r}"
        )

    def to_json(self) -> str:
        """Return the metadata entry."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, allow_nan=False)


def from_json(text: str | None, path: object) -> Description:
    """Read and check the description in a metadata entry of the file ``path``.

    Raises:
        ExportError: the file was not written by this package, or by another version of it.
    """
    if text is None:
        raise ExportError(
            f"{path} is an ONNX file, but not a graph of this package (no {METADATA_KEY!r} in its "
            "metadata); make one with: pahq export"
        )
    try:
        values = parse_json(text)
        version = values.pop("format")
        if version != FORMAT_VERSION:
            raise ExportError(
                f"{path} has format {one_line(version)!r}; this version reads {FORMAT_VERSION}"
            )
        values["destinations"] = tuple(Destination(**entry) for entry in values["destinations"])
        values["sources"] = tuple(values["sources"])
        fixed = values["fixed_head"]
        values["fixed_head"] = None if fixed is None else tuple(fixed)
        return _checked(Description(**values))
    except (ValueError, TypeError, KeyError, AttributeError, GraphError) as error:
        reason = one_line(error)
        raise ExportError(f"{path}: the description of the graph is damaged ({reason})") from None


def _checked(known: Description) -> Description:
    """Return ``known`` if later code can rely on it; a ``ValueError`` names a wrong entry."""
    sources, dests = known.sources, known.destinations
    sizes = ("n_layers", "n_heads", "d_head", "d_model", "n_ctx", "d_vocab", "d_vocab_out")
    texts = ("id", "source_model", "source_digest", "source_configuration")
    right = {
        **{name: _within(getattr(known, name), 1, LARGEST) for name in sizes},
        "graph": known.graph in ("dense", "sweep"),
        "seq_len": known.seq_len is None or _within(known.seq_len, 1, known.n_ctx),
        "positions": known.positions in ("all", "last", "not_first"),
        "high": known.high in ("input", "fixed", "none"),
        **{name: isinstance(getattr(known, name), str) for name in texts},
        "start_layer": _within(known.start_layer, 0, LARGEST) and known.start_layer < known.n_layers,
        "sources": _are_names(sources),
        "destinations": _are_names([dest.name for dest in dests]),
        "n_earlier": _within(known.n_earlier, 0, len(sources))
        and (known.n_earlier > 0) == (known.start_layer > 0),
        "precision": known.precision is None or isinstance(known.precision, dict),
        "versions": isinstance(known.versions, dict),
        "fixed_head": (known.fixed_head is not None) == (known.high == "fixed"),
        "heads_file": _is_file_name(known.heads_file)
        if known.high == "input"
        else known.heads_file is None,
    }
    for name, holds in right.items():
        if not holds:
            raise ValueError(name)
    if known.fixed_head is not None:
        known.check_head(known.fixed_head)
    for dest in dests:
        if not _fits(dest, known):
            raise ValueError(f"destination {dest.name!r}")
    return known


def _fits(dest: Destination, known: Description) -> bool:
    first, last = known.start_layer, known.n_layers - 1
    if dest.slot == "output":
        first = last = known.n_layers
    of_head = dest.slot in ("q", "k", "v", "attn")
    return (
        dest.slot in SLOTS
        and _within(dest.layer, first, last)
        and (_within(dest.head, 0, known.n_heads - 1) if of_head else dest.head == -1)
        and _within(dest.reads, 1, len(known.sources))
    )


LARGEST = 2**31
"""Upper bound of every size of a model."""


def _within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _are_names(names: Sequence[object]) -> bool:
    """Return whether ``names`` are distinct strings, at least one."""
    return bool(names) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names)


def _is_file_name(name: object) -> bool:
    """Return whether ``name`` is a plain file name that cannot leave its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
