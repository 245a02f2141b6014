"""Where a reader is tried: scratch folders, and a guard on what it may do meanwhile.

The guard is an audit hook of the interpreter, so it sees writes, processes, connections and pickles
however deep in a library they happen, but not what native code writes: for that there is
`Bench.check_surroundings`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pahq_plugin.errors import PahqError

T = TypeVar("T")

LONGEST_MESSAGE = 24 * 80
"""Characters: one screen."""

SECONDS, HANG = 1.0, 20.0
"""CPU time that one input may take, and wall-clock time after which it is given up."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate",
           "os.chmod", "shutil.rmtree"}  # fmt: skip
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
             "pickle.find_class", "socket.connect", "socket.getaddrinfo", "webbrowser.open"}  # fmt: skip


class Refused(Exception):
    """The reader said no, as it promises to."""


class Violation(AssertionError):
    """A reader broke a promise."""


class Slow(Violation):
    """A reader took too long; or the interpreter did, which collects garbage when it likes."""


class _Guard:
    """What the audit hook compares with."""

    allowed: tuple[str, ...] = ()
    armed = False
    found: list[str] = []  # noqa: RUF012 - one hook, one list

    @classmethod
    def see(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.armed:
            return
        if event in FORBIDDEN:
            cls.found.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                cls._check(event, path)
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                cls._check(event, path, arguments[-1])

    @classmethod
    def _check(cls, event: str, path: object, folder: object = None) -> None:
        """``folder`` is the open one that a relative path starts from, if there is one."""
        if isinstance(path, int) or path is None:
            return
        base = f"/proc/self/fd/{folder}" if type(folder) is int and folder >= 0 else ""
        try:
            real = os.path.realpath(os.path.join(base, os.fsdecode(path)))  # type: ignore[arg-type]
        except (ValueError, TypeError):  # a NUL: it cannot be opened either
            return
        if real != os.devnull and "__pycache__" not in real and not real.startswith(cls.allowed):
            cls.found.append(f"{event} {real!r:.200}")


sys.addaudithook(_Guard.see)


class Bench:
    """Scratch folders for one target.

    Attributes:
        inputs: where the files to read lie; readers may not write there.
        out: where readers write.
        slowest: CPU seconds of the slowest call, and how often a reader was called.
    """

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        place = memory if os.access(memory, os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="pahq-fuzz-", dir=place)).resolve()
        self.inputs, self.out, self._temporary = (self.root / n for n in ("in", "out", "tmp"))
        for folder in (self.inputs, self.out, self._temporary):
            folder.mkdir()
        self.slowest = 0.0
        self._around = self._surroundings()

    def close(self) -> None:
        """Remove the folders."""
        shutil.rmtree(self.root, ignore_errors=True)

    def put(self, name: str, content: bytes) -> Path:
        """A file among the inputs."""
        path = self.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def clean(self) -> None:
        """Empty the output folder."""
        for path in self.out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def call(
        self, reader: Callable[..., T], *arguments: Any, seconds: float = SECONDS, **named: Any
    ) -> T:
        """What the reader returns.

        Raises:
            Refused: it raised an error of the promised family, in one line.
            Slow: it took too long.
            Violation: it raised something else, or did what no reader may.
        """
        started = time.process_time()
        try:
            with self._guarded(), _given_up():
                return reader(*arguments, **named)
        except PahqError as error:
            check_message(str(error))
            raise Refused(str(error)) from None
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {str(error)[:300]}") from error
        finally:
            used = time.process_time() - started
            self.slowest = max(self.slowest, used)
            if used > seconds:
                raise Slow(f"{used:.1f} s of work")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        before, tempfile.tempdir = tempfile.tempdir, str(self._temporary)
        _Guard.allowed, _Guard.found = (f"{self.out}", f"{self._temporary}"), []
        written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        _Guard.armed = True
        try:
            yield
        finally:
            _Guard.armed = False
            tempfile.tempdir, sys.dont_write_bytecode = before, written
            if _Guard.found:  # whatever else was raised
                raise Violation(f"not allowed: {_Guard.found[0]}") from None

    def check_surroundings(self) -> None:
        """
        Raises:
            Violation: a file stands beside the folders, or among the inputs, that nobody put there.
        """
        if self._surroundings() != self._around:
            raise Violation(f"beside the output folder: {sorted(self._surroundings() - self._around)}")

    def _surroundings(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


@contextmanager
def _given_up() -> Iterator[None]:
    """
    Raises:
        Slow: the block runs longer than `HANG` seconds.
    """

    def stop(*_: object) -> None:
        raise Slow(f"hangs: no end after {HANG:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_message(message: str) -> None:
    """
    Raises:
        Violation: it is empty, of several lines, longer than a screen, or could steer a terminal.
    """
    holds(message != "", "an error without a message")
    holds(len(message.splitlines()) == 1, f"a message of several lines: {message!r:.300}")
    holds(len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:80]!r}")
    holds(message.isprintable(), f"raw controls: {message!r:.300}")


def holds(right: object, what: str) -> None:
    """
    Raises:
        Violation: not ``right``.
    """
    if not right:
        raise Violation(what)
