"""Files from which an interrupted run resumes: written whole, locked, and refused unless they fit.

Such a file is a safetensors file. Its tensors and a state of JSON values say how far the run is; its
metadata is a JSON document with that state, the identity of the run, and a digest of everything. It is
written under a temporary name and renamed, so that the file is complete or absent. This happens every so
many seconds and when the run is interrupted, also by Ctrl-C or SIGTERM. Reading it executes nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pahq_plugin.choices import CHECKPOINT_EVERY
from pahq_plugin.errors import CheckpointError, one_line
from pahq_plugin.system.files import written_whole
from pahq_plugin.system.processes import is_same_setting
from pahq_plugin.system.warn import warn

METADATA = "pahq"

Progress = TypeVar("Progress")
"""How far a run is."""

Tensors = dict[str, np.ndarray[Any, Any]]

Packed = tuple[Tensors, dict[str, Any]]
"""Progress without host objects: its tensors, and everything else as JSON values."""


class SavedProgress(Generic[Progress]):
    """The file of one run. A subclass says what its progress is.

    Args:
        path: the file; its folder is created if needed.
        identity: the identity of the run, as JSON values; a file of another run is refused.
        every: seconds between two writes.
    """

    schema: str
    """Version of the content; files of other versions are refused."""

    def __init__(
        self, path: str | Path, identity: Mapping[str, Any], every: float = CHECKPOINT_EVERY
    ) -> None:
        self.path = Path(path)
        self._identity = dict(identity)
        self._every = every
        self._written = time.monotonic()
        self._pending: Progress | None = None

    def packed(self, progress: Progress) -> Packed:
        """Convert progress to what is written to a file or sent to another process."""
        raise NotImplementedError

    def unpacked(self, content: Packed) -> Progress:
        """Undo `packed`.

        Raises:
            CheckpointError: the content does not fit the run.
        """
        raise NotImplementedError

    def is_whole(self, state: dict[str, Any], tensors: Tensors) -> bool:
        """Return whether state and tensors have all parts, of the right types."""
        raise NotImplementedError

    @contextmanager
    def held(self) -> Iterator[Progress | None]:
        """Lock the file for this process and yield its progress, or ``None`` if there is no file.

        However the block ends, the last progress is written; if that fails, a warning says so.

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

    def take(self, progress: Progress) -> None:
        """Keep the progress; write it if `every` seconds have passed since the last write."""
        self._pending = progress
        if time.monotonic() - self._written >= self._every:
            self._write(progress)

    # Writing -------------------------------------------------------------------------------------

    def _write(self, progress: Progress) -> None:
        """Replace the file atomically; if it cannot be written, warn and let the search continue."""
        tensors, state = self.packed(progress)
        document = {"schema": self.schema, "identity": self._identity, "state": state}
        document["digest"] = digest_of(document, tensors)
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

    def _read(self) -> Progress:
        document, tensors = read_saved(self.path, self.schema, self.is_whole)
        self._check_identity(document["identity"])
        return self.unpacked((tensors, document["state"]))

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


def read_saved(
    path: Path, schema: str, is_whole: Callable[[dict[str, Any], Tensors], bool]
) -> tuple[dict[str, Any], Tensors]:
    """Read the document and tensors of a file and verify its digest.

    Args:
        path: the file.
        schema: the version it must have.
        is_whole: whether state and tensors have all their parts, see `SavedProgress.is_whole`.

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
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise CheckpointError(f"{path} is not a checkpoint of this version; expected schema {schema!r}")
    digest = document.pop("digest", None)
    if digest != digest_of(document, tensors):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest")
    state = document.get("state")
    is_named = isinstance(document.get("identity"), dict)
    if not is_named or not isinstance(state, dict) or not is_whole(state, tensors):
        raise CheckpointError(f"{path} is damaged: a part is missing or of another type")
    return document, tensors


def digest_of(document: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the digest of a document and tensors."""
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
