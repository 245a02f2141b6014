"""Checkpoints: a search can be stopped at any moment and resumed from a single file.

The tensors of the file (see `saved_progress`) are the decisions; its state is the rest of the sweep's
`Snapshot`.

Axes: ``[decision]`` for the decisions taken, ``[candidate]`` for the predictions of the next edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pahq_plugin.choices import CHECKPOINT_EVERY
from pahq_plugin.discovery.acdc import Snapshot
from pahq_plugin.discovery.guard import STATE
from pahq_plugin.discovery.saved_progress import Packed, SavedProgress, Tensors, read_saved
from pahq_plugin.errors import CheckpointError
from pahq_plugin.host import Edge
from pahq_plugin.results.decision import Decision
from pahq_plugin.system.processes import World

SCHEMA = "pahq-checkpoint/1"

STATE_KEYS = ("recent", "audits", "guard", "evaluations", "re_evaluations")
"""Fields of a `Snapshot` that are stored as JSON."""

TENSORS = {"effects": np.float64, "kept": np.bool_, "exact": np.bool_, "predicted": np.bool_}


class Checkpoint(SavedProgress[Snapshot]):
    """The checkpoint of one search.

    Args:
        path: the file; its folder is created if needed.
        identity: the identity of the run, as JSON values; a file of another run is refused.
        order: all edges, in the order in which they are tested.
        threshold: the search's threshold.
        every: seconds between two writes.
    """

    schema = SCHEMA

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        order: Sequence[Edge],
        threshold: float,
        every: float = CHECKPOINT_EVERY,
    ) -> None:
        super().__init__(path, identity, every)
        self._order = order
        self._threshold = threshold

    def packed(self, progress: Snapshot) -> Packed:
        """See `SavedProgress.packed`."""
        return packed(progress)

    def unpacked(self, content: Packed) -> Snapshot:
        """See `SavedProgress.unpacked`; the decisions are those on the first edges of the order."""
        snapshot = unpacked(content, self._order)
        self._check_decisions(snapshot, len(content[0]["effects"]))
        return snapshot

    def is_whole(self, state: dict[str, Any], tensors: Tensors) -> bool:
        """See `SavedProgress.is_whole`."""
        return _is_whole(state, tensors)

    def _check_decisions(self, snapshot: Snapshot, count: int) -> None:
        """Refuse more decisions than edges, and decisions that contradict their effects."""
        fits = count <= len(self._order) and all(0 <= i < len(self._order) for i in snapshot.audits)
        if not fits or any(d.kept != (d.effect >= self._threshold) for d in snapshot.decisions):
            raise CheckpointError(f"checkpoint {self.path} is damaged: its decisions do not fit the run")


@contextmanager
def held_by_first(
    checkpoint: Checkpoint | None, order: Sequence[Edge], world: World
) -> Iterator[Snapshot | None]:
    """Hold the file in the first process and yield its snapshot in all of them."""
    with ExitStack() as stack:

        def begin() -> Packed | None:
            start = None if checkpoint is None else stack.enter_context(checkpoint.held())
            return None if start is None else packed(start)

        found = world.share(begin)
        yield None if found is None else unpacked(found, order)


def packed(snapshot: Snapshot) -> Packed:
    """Convert a snapshot to what is written to a file or sent to another process."""
    return _tensors(snapshot), _state(snapshot)


def unpacked(content: Packed, order: Sequence[Edge]) -> Snapshot:
    """Undo `packed`; the decisions are those on the first edges of ``order``."""
    tensors, state = content
    taken = zip(order, *(tensors[name].tolist() for name in ("effects", "kept", "exact")))  # noqa: B905
    decisions = tuple(Decision(edge, *values) for edge, *values in taken)
    rest: dict[str, Any] = state | {name: tuple(state[name]) for name in ("recent", "audits")}
    return Snapshot(decisions, tuple(tensors["predicted"].tolist()), **rest)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Read the document and tensors of a checkpoint and verify its digest.

    Raises:
        CheckpointError: the file is truncated, was tampered with, or is of another version.
    """
    return read_saved(path, SCHEMA, _is_whole)


def _is_whole(state: dict[str, Any], tensors: Tensors) -> bool:
    if state.keys() != set(STATE_KEYS) or tensors.keys() != TENSORS.keys():
        return False
    typed = all(t.dtype == TENSORS[name] and t.ndim == 1 for name, t in tensors.items())
    equal = len(tensors["effects"]) == len(tensors["kept"]) == len(tensors["exact"])
    guard = state.get("guard")
    banded = guard is None or (
        isinstance(guard, dict)
        and guard.keys() == set(STATE)
        and all(isinstance(v, float) and v >= 0 for v in guard.values())
    )
    counted = all(type(state.get(name)) is int for name in ("evaluations", "re_evaluations"))
    listed = _all_of(state.get("recent"), bool) and _all_of(state.get("audits"), int)
    finite = typed and bool(np.isfinite(tensors["effects"]).all())
    return typed and equal and banded and counted and listed and finite


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _tensors(snapshot: Snapshot) -> Tensors:
    columns = {
        "effects": [d.effect for d in snapshot.decisions],
        "kept": [d.kept for d in snapshot.decisions],
        "exact": [d.exact for d in snapshot.decisions],
        "predicted": snapshot.predicted,
    }
    return {name: np.array(values, dtype=TENSORS[name]) for name, values in columns.items()}


def _state(snapshot: Snapshot) -> dict[str, Any]:
    state = {name: getattr(snapshot, name) for name in STATE_KEYS}
    return state | {name: list(state[name]) for name in ("recent", "audits")}
