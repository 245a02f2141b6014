"""A sample of every target, the inputs that once failed, and that a broken promise is noticed."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pahq_plugin.errors import PahqError
from tests.fuzz.__main__ import main
from tests.fuzz.bench import Bench, Refused, Slow, Violation
from tests.fuzz.regressions import ACCEPTED, REFUSED
from tests.fuzz.runner import run, write_failures
from tests.fuzz.target import Target, attempt, targets


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _warnings_as_before() -> Iterator[None]:
    """Commands change what is warned of."""
    with warnings.catch_warnings():
        yield


@pytest.mark.parametrize("name", targets())
def test_a_sample_breaks_no_promise(name: str) -> None:
    target, bench = targets()[name], Bench()

    @settings(
        max_examples=target.sample, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.inputs)
    def each(content: Any) -> None:
        attempt(target, content, bench)

    try:
        each()
    finally:
        bench.close()


@pytest.mark.parametrize("name", [name for name, target in targets().items() if target.files])
def test_undamaged_files_are_taken(name: str, bench: Bench) -> None:
    target = targets()[name]
    accepted = [attempt(target, content, bench) for content in target.files]
    assert any(accepted), "otherwise the checks of what is accepted would prove nothing"


@pytest.mark.parametrize(("name", "content"), REFUSED)
def test_what_once_failed_is_refused(name: str, content: Any, bench: Bench) -> None:
    assert not attempt(targets()[name], content, bench)


@pytest.mark.parametrize(("name", "content"), ACCEPTED)
def test_what_once_failed_is_taken(name: str, content: Any, bench: Bench) -> None:
    assert attempt(targets()[name], content, bench)


# The guard ----------------------------------------------------------------------------------------


def refuse(*lines: str) -> None:
    raise PahqError("\n".join(lines))


def long_message() -> None:
    error = PahqError("x")
    error.args = ("x" * 5000,)
    raise error


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "another exception": (lambda: {}["a"], "KeyError"),
    "a write": (lambda: Path("here.txt").write_text("x"), "not allowed: open"),
    "a folder": (lambda: Path(tempfile.gettempdir(), "../made").mkdir(), "not allowed: os.mkdir"),
    "a rename": (lambda: os.rename(__file__ + ".none", "/tmp/none"), "not allowed: os.rename"),
    "a process": (lambda: subprocess.run(["true"], check=True), "not allowed: subprocess.Popen"),
    "a connection": (lambda: socket.create_connection(("127.0.0.1", 9), 0.1), "not allowed: socket"),
    "a pickle": (lambda: pickle.loads(b"cos\ngetcwd\n(tR."), "not allowed: pickle.find_class"),
    "a long message": (long_message, "a message of 5000 characters"),
}


def busy() -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


def test_work_that_takes_long_is_noticed(bench: Bench) -> None:
    with pytest.raises(Slow, match="of work"):
        bench.call(busy, seconds=0.01)


@pytest.mark.parametrize("times", [1, 2])
def test_a_reader_is_slow_if_it_is_slow_twice(times: int, bench: Bench) -> None:
    calls = iter([busy] * times + [lambda: None] * 2)
    target = Target("x", st.none(), lambda _, bench: bench.call(next(calls), seconds=0.01))
    if times == 1:
        assert attempt(target, None, bench)
    else:
        with pytest.raises(Slow):
            attempt(target, None, bench)


def test_a_hang_is_noticed(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.fuzz.bench.HANG", 0.05)
    with pytest.raises(Slow, match="hangs"):
        bench.call(lambda: time.sleep(5))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_is_noticed(case: str, bench: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    call, words = BROKEN[case]
    with pytest.raises(Violation, match=words):
        bench.call(call)


def test_what_is_allowed(bench: Bench) -> None:
    assert bench.call(lambda: (bench.out / "x").write_text("x")) == 1
    with tempfile.TemporaryDirectory() as other, pytest.raises(Refused, match=r"a\\nb"):
        assert Path(other).is_dir()
        bench.call(refuse, "a", "b")


def test_the_same_seed_draws_the_same_inputs(tmp_path: Path) -> None:
    drawn: list[list[Any]] = []
    for _ in range(2):
        seen: list[Any] = []
        spy = Target("spy", targets()["plan"].inputs, lambda content, _, seen=seen: seen.append(content))
        run([spy], inputs=50, first_seed=3, say=lambda _: None)
        drawn.append(seen)
    assert drawn[0] == drawn[1] and len(drawn[0]) >= 50


def test_failing_inputs_are_kept(tmp_path: Path) -> None:
    def fail(content: bytes, _: Bench) -> None:
        raise Violation("always the same")

    (count,) = run([Target("bad", targets()["plan"].inputs, fail)], inputs=20, say=lambda _: None)
    assert count.failed == count.inputs and count.accepted == 0
    assert write_failures([count], tmp_path / "kept") == 1
    assert (tmp_path / "kept" / "bad-0.txt").read_text() == "always the same\n"
    assert (tmp_path / "kept" / "bad-0.input").is_file()


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    words = ["--target", "search", "--inputs", "40", "--seed", "1", "--failures", str(tmp_path / "f")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "search" in out and "0 violations" in out and not (tmp_path / "f").exists()


def test_atheris_is_optional(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--engine", "atheris", "--inputs", "10"]) == 0
    assert capsys.readouterr().out == "skipped: atheris is not installed\n"
