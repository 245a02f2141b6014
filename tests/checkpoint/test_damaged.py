"""Torn and tampered checkpoints are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from pahq_plugin.discovery.checkpoint import METADATA, read_checkpoint
from pahq_plugin.errors import CheckpointError
from tests.checkpoint.runs import run


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_torn_files_are_refused(written: Path, share: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
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
    from pahq_plugin.discovery.checkpoint import _digest

    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del document["digest"]
    change(document, tensors)
    document["digest"] = _digest(document, tensors)
    save_file(tensors, path, {METADATA: json.dumps(document)})


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "kept against its effect": lambda d, t: t["kept"].__setitem__(0, not t["kept"][0]),
    "an infinite effect": lambda d, t: t["effects"].__setitem__(0, np.inf),
    "more decisions than edges": lambda d, t: t.update(
        {name: np.concatenate([t[name]] * 2) for name in ("effects", "kept", "exact")}
    ),
    "columns of unequal length": lambda d, t: t.update(kept=t["kept"][:-1]),
    "an audit of no edge": lambda d, t: d["state"]["audits"].append(10**9),
    "a negative guard": lambda d, t: d["state"]["guard"].update(floor=-1.0),
    "a guard without a width": lambda d, t: d["state"]["guard"].pop("relative"),
    "text for a count": lambda d, t: d["state"].update(evaluations="many"),
    "no state": lambda d, t: d.pop("state"),
    "another schema": lambda d, t: d.update(schema="pahq-checkpoint/2"),
    "integers for effects": lambda d, t: t.update(effects=t["effects"].astype(np.int64)),
    "one more tensor": lambda d, t: t.update(more=t["kept"]),
    "no identity": lambda d, t: d.update(identity=[]),
}


@pytest.mark.parametrize("name", sorted(TAMPERED))
def test_tampered_files_are_refused(written: Path, name: str) -> None:
    """Even with a digest that fits."""
    rewritten(written, TAMPERED[name])
    with pytest.raises(CheckpointError) as error:
        run(written)
    assert str(written) in str(error.value) and "\n" not in str(error.value)
