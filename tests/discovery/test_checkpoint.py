"""Checkpoints: searches that are stopped go on to the same decisions, bit for bit; torn and tampered
files are refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import pahq_plugin as pahq
from pahq_plugin.discovery import acdc as search
from pahq_plugin.discovery import saved_progress
from pahq_plugin.discovery.checkpoint import Checkpoint, read_checkpoint
from pahq_plugin.discovery.discover import discover
from pahq_plugin.discovery.saved_progress import METADATA, digest_of
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.errors import CheckpointError, ConfigError, PahqError, PahqWarning
from tests.helpers.checkpoints import THRESHOLD, run, taken
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of the small searches here, too."""
    monkeypatch.setattr(search, "SNAPSHOT_EVERY", 24)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    run(path)
    return path


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stopping_after(count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the search break off behind its ``count``-th snapshot; call what is returned to end that."""
    original, seen = Checkpoint.take, [0]

    def take(self: Checkpoint, snapshot: search.Snapshot) -> None:
        original(self, snapshot)
        seen[0] += 1
        if seen[0] == count:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "take", take)
    return lambda: monkeypatch.setattr(Checkpoint, "take", original)


CASES: list[dict[str, Any]] = [
    {"method": "acdc"},
    {"method": "pahq"},
    {"method": "pahq", "threshold": 0.05},
    {"method": "pahq", "engine": "host"},
    {"method": "acdc", "engine": "host", "ablation": "zero"},
    {"method": "pahq-paper"},
    {"method": "pahq", "ablation": "tokenwise_mean_corrupt", "batches": None},
    {"method": "acdc", "metric": "logit_diff"},
    {"method": "pahq", "precision": pahq.PrecisionConfig(low="int8", mlp="int8", policy="hybrid")},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_a_stopped_search_goes_on_to_the_same_decisions(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(None, **settings)
    stops = 0
    for count in (1, 2, 4):
        path = tmp_path / f"{count}.safetensors"
        go_on = stopping_after(count, monkeypatch)
        try:
            run(path, **settings)
        except Stopped:
            stops += 1
        go_on()
        assert taken(run(path, **settings)) == taken(whole), count
    assert stops >= 2


def test_it_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on = stopping_after(2, monkeypatch)
    with pytest.raises(Stopped):
        run(tmp_path / "c", progress=True)
    go_on()
    assert "going on" not in capsys.readouterr().err
    run(tmp_path / "c", progress=True)
    assert f"going on from {tmp_path / 'c'}: " in capsys.readouterr().err
    run(tmp_path / "c")
    assert capsys.readouterr().err == ""


def test_a_finished_search_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    first = run(path)
    _, tensors = read_checkpoint(path)
    assert len(tensors["effects"]) == len(first.decisions)
    again = run(path)
    assert taken(again) == taken(first)
    assert again.stats.evaluations == first.stats.evaluations
    assert again.record() == first.record()
    assert os.listdir(tmp_path) == ["c.safetensors"]  # neither lock nor temporary file


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    assert run(None).record() == run(tmp_path / "c").record()


def test_little_is_lost_where_every_row_is_a_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host engine is afresh more often than the others."""
    monkeypatch.setattr(search, "SNAPSHOT_EVERY", 1024)
    monkeypatch.setattr(HostEngine, "snapshot_every", 8)
    go_on = stopping_after(1, monkeypatch)
    with pytest.raises(Stopped):
        run(tmp_path / "c", method="acdc", engine="host", checkpoint_every=1e9)
    go_on()
    _, tensors = read_checkpoint(tmp_path / "c")
    assert 0 < len(tensors["effects"]) <= 8
    settings = {"method": "acdc", "engine": "host"}
    assert taken(run(tmp_path / "c", **settings)) == taken(run(None, **settings))


def test_an_interrupted_search_writes_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    stopping_after(2, monkeypatch)
    with pytest.raises(Stopped):
        run(path, checkpoint_every=1e9)  # never by the clock
    _, tensors = read_checkpoint(path)
    assert 0 < len(tensors["effects"]) < len(small_model().edges)


def test_a_full_disk_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "c", []

    def full(*args: Any) -> None:
        calls.append(args)
        raise OSError(28, "No space left on device")

    whole = run(None)
    monkeypatch.setattr(saved_progress, "save_file", full)
    with pytest.warns(PahqWarning, match="No space left"):
        result = run(path)
    assert taken(result) == taken(whole) and len(calls) > 2
    assert os.listdir(tmp_path) == []


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a file that another process holds for ever."""

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with refused(CheckpointError, "locked"):
        run(tmp_path / "c")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["file/c", "x" * 252, "a\0b"], ids=["below a file", "too long", "a null byte"]
)
def test_a_folder_that_cannot_be_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="written"):
        run(tmp_path / name)


def test_no_checkpoint_of_a_folder_or_a_ranking(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="eap"):
        discover(small_model(), loader(), method="eap", checkpoint=tmp_path / "c")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one, other = (Checkpoint(path, {}, [], THRESHOLD) for _ in range(2))
    in_use = pytest.raises(CheckpointError, match=str(os.getpid()))
    with one.held(), in_use, other.held():
        pass
    with other.held():
        pass
    assert os.listdir(tmp_path) == []


def test_many_threads_never_hold_it_together(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "c", [0], [0]
    lock = threading.Lock()

    def hold() -> None:
        for _ in range(50):
            try:
                with Checkpoint(path, {}, [], THRESHOLD).held():
                    with lock:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(0.0005)
                    with lock:
                        inside[0] -= 1
            except PahqError:
                pass

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_torn_files_are_refused(written: Path, share: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="checkpoint"):
        run(written)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_bit_goes_unnoticed(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray(_content(tmp_path_factory))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("bits") / "c"
    path.write_bytes(content)
    try:
        document, tensors = read_checkpoint(path)
    except CheckpointError:
        return
    original = tmp_path_factory.getbasetemp() / "original"
    same_document, same_tensors = read_checkpoint(original)  # white space of the header, at most
    assert document == same_document
    assert all(np.array_equal(tensors[name], same_tensors[name]) for name in tensors)


def _content(tmp_path_factory: Any) -> bytes:
    original = tmp_path_factory.getbasetemp() / "original"
    if not original.exists():
        run(original)
    return original.read_bytes()


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a checkpoint and give it the digest that belongs to what is then in it."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del document["digest"]
    change(document, tensors)
    document["digest"] = digest_of(document, tensors)
    save_file(tensors, path, {METADATA: json.dumps(document)})


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "an infinite effect": lambda d, t: t["effects"].__setitem__(0, np.inf),
    "more decisions than edges": lambda d, t: t.update(
        {name: np.concatenate([t[name]] * 2) for name in ("effects", "kept", "exact")}
    ),
    "columns of unequal length": lambda d, t: t.update(kept=t["kept"][:-1]),
    "an audit of no edge": lambda d, t: d["state"]["audits"].append(10**9),
    "a negative guard": lambda d, t: d["state"]["guard"].update(floor=-1.0),
    "a guard without a width": lambda d, t: d["state"]["guard"].pop("relative"),
    "text for a count": lambda d, t: d["state"].update(evaluations="many"),
    "integers for effects": lambda d, t: t.update(effects=t["effects"].astype(np.int64)),
    "one more tensor": lambda d, t: t.update(more=t["kept"]),
    "no identity": lambda d, t: d.update(identity=[]),
}


@pytest.mark.parametrize("name", sorted(TAMPERED))
def test_tampered_files_are_refused(tmp_path: Path, name: str) -> None:
    """Even with a digest that fits."""
    path, int8 = tmp_path / "c.safetensors", pahq.PrecisionConfig(low="int8", mlp="int8")
    run(path, precision=int8)
    rewritten(path, TAMPERED[name])
    with pytest.raises(CheckpointError) as error:
        run(path, precision=int8)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
