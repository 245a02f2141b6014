"""Files to resume from, with the simplest progress there is: a list of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pahq_plugin.discovery.saved_progress import Packed, SavedProgress, Tensors, read_saved
from pahq_plugin.errors import CheckpointError


class Numbers(SavedProgress[list[float]]):
    schema = "numbers/1"

    def packed(self, progress: list[float]) -> Packed:
        return {"numbers": np.array(progress)}, {"count": len(progress)}

    def unpacked(self, content: Packed) -> list[float]:
        return content[0]["numbers"].tolist()

    def is_whole(self, state: dict[str, Any], tensors: Tensors) -> bool:
        return state.get("count") == len(tensors["numbers"])


def test_what_was_taken_last_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "n.safetensors"
    file = Numbers(path, {"seed": 1}, every=1e9)
    with file.held() as start:
        assert start is None
        file.take([1.0])
        file.take([1.0, 2.5])
        assert not path.exists()  # too early
    with Numbers(path, {"seed": 1}).held() as start:
        assert start == [1.0, 2.5]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_it_is_written_after_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    file = Numbers(path, {})
    with pytest.raises(KeyboardInterrupt), file.held():
        file.take([3.0])
        raise KeyboardInterrupt
    assert read_saved(path, "numbers/1", file.is_whole)[1]["numbers"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("schema", "identity", "said"),
    [
        ("numbers/2", {"seed": 1}, "not a checkpoint of this version; expected schema 'numbers/2'"),
        ("numbers/1", {"seed": 2}, "its seed is 1, not 2"),
        ("numbers/1", {}, "belongs to another run"),
    ],
)
def test_files_of_other_runs_and_versions_are_refused(
    schema: str, identity: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "n.safetensors"
    own = Numbers(path, {"seed": 1})
    with own.held():
        own.take([1.0])
    other = Numbers(path, identity)
    other.schema = schema
    with pytest.raises(CheckpointError, match=said), other.held():
        pass


def test_torn_files_and_files_without_a_document_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    file = Numbers(path, {})
    with file.held():
        file.take([1.0, 2.0])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a complete checkpoint"), file.held():
        pass
    save_file({"numbers": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"), file.held():
        pass


def test_only_one_process_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    with (
        Numbers(path, {}).held(),
        pytest.raises(CheckpointError, match="in use"),
        Numbers(path, {}).held(),
    ):
        pass
