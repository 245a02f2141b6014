"""Checkpoints: a search can be stopped at any moment and resumed from a single file.

A checkpoint is a safetensors file. Its tensors are the decisions; its metadata is a JSON document with
the rest of the sweep's `Snapshot`, the identity of the run, and a digest of everything. It is written
under a temporary name and renamed, so that the file is complete or absent. This happens every so many
seconds and when the run is interrupted, also by Ctrl-C or SIGTERM. Reading it executes nothing.

Axes: ``[decision]`` for the decisions taken, ``[candidate]`` for the predictions of the next edges.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pahq_plugin.choices import CHECKPOINT_EVERY
from pahq_plugin.discovery.acdc import Snapshot
from pahq_plugin.discovery.guard import STATE
from pahq_plugin.errors import CheckpointError, one_line
from pahq_plugin.host import Edge
from pahq_plugin.results.decision import Decision
from pahq_plugin.system.files import written_whole
from pahq_plugin.system.processes import World, is_same_setting
from pahq_plugin.system.warn import warn

SCHEMA = "pahq-checkpoint/1"
METADATA = "pahq"

STATE_KEYS = ("recent", "audits", "guard", "evaluations", "re_evaluations")
"""Fields of a `Snapshot` that are stored as JSON."""

TENSORS = {"effects": np.float64, "kept": np.bool_, "exact": np.bool_, "predicted": np.bool_}


class Checkpoint:
    """The checkpoint of one run.

    Args:
        path: the file; its folder is created if needed.
        identity: the identity of the run, as JSON values; a file of another run is refused.
        order: all edges, in the order in which they are tested.
        threshold: the search's threshold.
        every: seconds between two writes.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        order: Sequence[Edge],
        threshold: float,
        every: float = CHECKPOINT_EVERY,
    ) -> None:
        self.path = Path(path)
        self._identity = dict(identity)
        self._order = order
        self._threshold = threshold
        self._every = every
        self._written = time.monotonic()
        self._pending: Snapshot | None = None

    @contextmanager
    def held(self) -> Iterator[Snapshot | None]:
        """Lock the file for this process and yield its snapshot, or ``None`` if there is no file.

        However the block ends, the last snapshot is written; if that fails, a warning says so.

        Raises:
            CheckpointError: another process holds the lock, the folder cannot be written to, or the file
                is damaged or belongs to another run.
        """
        with _folder_for(self.path), _locked(self.path), _terminated_gently():
            start = self._read() if self.path.exists() else None
            try:
                yield start
            finally:
                if self._pending is not None:
                    self._write(self._pending)

    def take(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; write it if `every` seconds have passed since the last write."""
        self._pending = snapshot
        if time.monotonic() - self._written >= self._every:
            self._write(snapshot)

    # Writing -------------------------------------------------------------------------------------

    def _write(self, snapshot: Snapshot) -> None:
        """Replace the file atomically; if it cannot be written, warn and let the search continue."""
        tensors = _tensors(snapshot)
        document = {"schema": SCHEMA, "identity": self._identity, "state": _state(snapshot)}
        document["digest"] = _digest(document, tensors)
        metadata = {METADATA: json.dumps(document, sort_keys=True)}
        self._written = time.monotonic()  # also after a failure: the next attempt waits as long
        try:
            with written_whole(self.path) as temporary:
                save_file(tensors, temporary, metadata)
        except (OSError, SafetensorError) as error:
            warn(f"checkpoint {self.path} could not be written ({one_line(error)}); the search goes on")
            return
        self._pending = None

    # Reading -------------------------------------------------------------------------------------

    def _read(self) -> Snapshot:
        document, tensors = read_checkpoint(self.path)
        self._check_identity(document["identity"])
        snapshot = unpacked((tensors, document["state"]), self._order)
        self._check_decisions(snapshot, len(tensors["effects"]))
        return snapshot

    def _check_identity(self, found: object) -> None:
        known = found if isinstance(found, dict) else {}
        for name, value in self._identity.items():
            if not is_same_setting(name, known.get(name), value):
                raise CheckpointError(
                    f"checkpoint {self.path} belongs to another run: its {name} is "
                    f"{_shown(known.get(name))}, not {_shown(value)}; name another file or delete it"
                )
        if known.keys() != self._identity.keys():
            raise CheckpointError(f"checkpoint {self.path} belongs to another run; name another file")

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


Packed = tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]
"""A snapshot without host objects: its tensors, and everything else as JSON values."""


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


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Read the document and tensors of a checkpoint and verify its digest.

    Raises:
        CheckpointError: the file is truncated, was tampered with, or is of another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        document = json.loads(metadata[METADATA])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {one_line(error)}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is not a checkpoint of this version; expected schema {SCHEMA!r}")
    digest = document.pop("digest", None)
    if digest != _digest(document, tensors):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest")
    if not _is_whole(document, tensors):
        raise CheckpointError(f"{path} is damaged: a part is missing or of another type")
    return document, tensors


def _is_whole(document: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> bool:
    state = document.get("state")
    if not isinstance(state, dict) or state.keys() != set(STATE_KEYS):
        return False
    if not isinstance(document.get("identity"), dict) or tensors.keys() != TENSORS.keys():
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


def _tensors(snapshot: Snapshot) -> dict[str, np.ndarray[Any, Any]]:
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


def _digest(document: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(document, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# One process at a time ----------------------------------------------------------------------------


@contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """Create the folder of a file; remove it on leaving if it is new and still empty (no parents)."""
    try:
        is_new = not path.parent.exists()
        if path.is_dir():
            raise CheckpointError(f"checkpoint {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise CheckpointError(f"checkpoint {path} cannot be written ({one_line(error)})") from error
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``.NAME.lock`` beside a file, and delete it on leaving.

    Raises:
        CheckpointError: another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    file = _lock(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def _lock(lock: Path, path: Path) -> TextIO:
    while True:
        file = _opened(lock, path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a file system without locks
                if os.fstat(file.fileno()).st_size == 0:  # unheld: a holder writes its process id
                    lock.unlink(missing_ok=True)
                file.close()
                raise CheckpointError(
                    f"checkpoint {path} cannot be locked ({one_line(error)}); name one on another disk"
                ) from error
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise CheckpointError(
                f"checkpoint {path} is in use by process {holder}; wait for it, or name another file"
            ) from None
        if _is_at(file, lock):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # its last holder has just deleted it


def _opened(lock: Path, path: Path) -> TextIO:
    try:
        return open(lock, "a+", encoding="ascii")
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise CheckpointError(f"checkpoint {path} cannot be written ({one_line(error)})") from error


def _is_at(file: TextIO, path: Path) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def _terminated_gently() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM inside the block, as on Ctrl-C; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
