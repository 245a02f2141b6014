"""The checkpoint of effects: what it holds, and what is refused even with a digest that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pahq_plugin.discovery.effects_file import EffectsFile, Measured
from pahq_plugin.discovery.saved_progress import METADATA, digest_of
from pahq_plugin.errors import CheckpointError


def file_of(path: Path, most: int = 3) -> EffectsFile:
    return EffectsFile(path, {"method": "eactp"}, most)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "e.safetensors"
    file = file_of(path)
    with file.held():
        file.take(Measured((1 / 3, -2e-300, 0.0), 7))
    return path


def test_effects_come_back_to_the_last_bit(written: Path) -> None:
    with file_of(written).held() as start:
        assert start == Measured((1 / 3, -2e-300, 0.0), 7)


def test_more_effects_than_the_run_has_are_refused(written: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit the run"), file_of(written, 2).held():
        pass


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "an infinite effect": lambda d, t: t["effects"].__setitem__(0, np.inf),
    "effects of lower precision": lambda d, t: t.update(effects=t["effects"].astype(np.float32)),
    "a table of effects": lambda d, t: t.update(effects=t["effects"][None]),
    "one more tensor": lambda d, t: t.update(more=t["effects"]),
    "text for a count": lambda d, t: d["state"].update(evaluations="many"),
    "a negative count": lambda d, t: d["state"].update(evaluations=-1),
    "one more field": lambda d, t: d["state"].update(more=1),
    "a search's schema": lambda d, t: d.update(schema="pahq-checkpoint/1"),
}


@pytest.mark.parametrize("name", sorted(TAMPERED))
def test_tampered_files_are_refused(written: Path, name: str) -> None:
    with safe_open(written, framework="numpy") as file:
        document = json.loads(file.metadata()[METADATA])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del document["digest"]
    TAMPERED[name](document, tensors)
    document["digest"] = digest_of(document, tensors)
    save_file(tensors, written, {METADATA: json.dumps(document)})
    with pytest.raises(CheckpointError) as error, file_of(written).held():
        pass
    assert str(written) in str(error.value) and "\n" not in str(error.value)
