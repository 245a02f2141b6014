"""Checkpoints of a search: torn and tampered ones, also with a digest that fits."""

from __future__ import annotations

import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from pahq_plugin.discovery.acdc import Snapshot
from pahq_plugin.discovery.checkpoint import Checkpoint
from pahq_plugin.discovery.saved_progress import METADATA, digest_of
from pahq_plugin.host.graph import canonical_edges
from tests.fuzz.bench import Bench, holds
from tests.fuzz.hostile import damaged
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.results import SEARCH, discoveries, tiny
from tests.fuzz.target import Target

THRESHOLD = 0.01
GUARD = {"relative": 0.3, "floor": 1e-6, "fixed": 0.0, "widened": 1.0, "drift": 0.0}


def checkpoint(path: Path) -> Checkpoint:
    """That of a search on the tiny model."""
    return Checkpoint(path, SEARCH, canonical_edges(tiny()), THRESHOLD)


@cache
def files() -> tuple[bytes, ...]:
    """A search half done with a guard, and one done without."""
    decisions = discoveries()[0].decisions
    half = Snapshot(decisions[:4], (True, False), (True,), (1, 5), GUARD, 12, 3)
    whole = Snapshot(decisions, (), (), (), None, 9, 0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, snapshot in enumerate((half, whole)):
            path = Path(folder) / str(number)
            checkpoint(path)._write(snapshot)
            found.append(path.read_bytes())
    return tuple(found)


@cache
def contents() -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    """Documents and tensors of `files`."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(files()):
            path = Path(folder) / str(number)
            path.write_bytes(content)
            with safe_open(path, framework="numpy") as file:
                document = json.loads(file.metadata()[METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            del document["digest"]
            found.append((document, tensors))
    return tuple(found)


def resealed(document: Any, number: int) -> bytes:
    """A file with another document and a digest that fits, where that can be written."""
    tensors = contents()[number][1]
    try:
        sealed = document | {"digest": digest_of(document, tensors)}
        return save(tensors, {METADATA: json.dumps(sealed)})
    except (TypeError, ValueError, UnicodeError):
        return save(tensors, {METADATA: repr(document)})


def resealed_files() -> st.SearchStrategy[bytes]:
    """Damaged documents, sealed again."""
    each = [
        damaged([document]).map(lambda value, n=number: resealed(value, n))
        for number, (document, _) in enumerate(contents())
    ]
    return st.one_of(each)


def check(content: bytes, bench: Bench) -> None:
    """What is taken fits the run: decisions of its first edges, as their effects say."""
    snapshot = bench.call(checkpoint(bench.put("checkpoint", content))._read)
    edges = canonical_edges(tiny())
    holds([d.edge for d in snapshot.decisions] == edges[: len(snapshot.decisions)], "other edges")
    holds(all(math.isfinite(d.effect) for d in snapshot.decisions), "an effect that is not finite")
    holds(all(d.kept == (d.effect >= THRESHOLD) for d in snapshot.decisions), "kept against its effect")
    holds(all(0 <= i < len(edges) for i in snapshot.audits), "an audit of no edge")


def targets() -> list[Target]:
    """The reader of checkpoints."""
    inputs = st.one_of(damaged_bytes(files()), resealed_files())
    return [Target("checkpoint", inputs, check, files=files())]
