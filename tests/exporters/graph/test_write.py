"""Exports: what is written, and exports that fail: every file is as it was before."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, check, export_onnx
from pahq_exporters.graph import write
from pahq_exporters.runtime import heads
from pahq_plugin.errors import ExportError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.refused import Interrupted, contents, refused, untouched
from tests.helpers.rounded import FULL, TOLERANCE, off
from tests.helpers.small import small_model, tokens

MODEL = small_model()


def good(folder: Path, **options: Any) -> Path:
    """An export that is there before another one fails."""
    path = export_onnx(MODEL, folder / "g.onnx", **options)
    assert set(contents(folder)) >= {"g.onnx", "g.heads.safetensors"}
    return path


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken.onnx").mkdir()
    cases = {
        tmp_path: "folder",
        tmp_path / "taken.onnx": "folder",
        "": "folder",
        tmp_path / "file" / "g.onnx": "Not a directory",
        tmp_path / ("g" * 300 + ".onnx"): "too long",
        "/proc/g.onnx": "/proc/g.onnx",
        tmp_path / "graph": ".onnx",
    }
    for path, word in cases.items():
        with untouched(tmp_path), refused(ExportError, word):
            export_onnx(MODEL, path)


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = export_onnx(MODEL, tmp_path / "a" / "b" / "g.onnx")
    assert OnnxPatcher(path).description.high == "input"
    assert sorted(contents(tmp_path)) == ["a", "a/b", "a/b/g.heads.safetensors", "a/b/g.onnx"]


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since root may write anywhere."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with untouched(tmp_path), refused(ExportError, "g.onnx"):
        export_onnx(MODEL, tmp_path / "g.onnx")


ERRORS = [
    (OSError(28, "No space left on device"), ExportError),
    (KeyboardInterrupt(), KeyboardInterrupt),
]


@pytest.mark.parametrize(("error", "raised"), ERRORS)
@pytest.mark.parametrize(
    ("at", "there"), [*((i, False) for i in (1, 2, 3)), *((i, True) for i in (1, 2, 3, 4, 5, 6))]
)
def test_an_export_that_stops_between_two_files(
    at: int, there: bool, error: BaseException, raised: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """All three files are new or all are old, and work."""
    if there:
        good(tmp_path, external_data=True)
    replace = Interrupted(os.replace, at, error)
    monkeypatch.setattr(os, "replace", replace)
    before = contents(tmp_path)
    with pytest.raises(raised):
        export_onnx(small_model(seed=1), tmp_path / "g.onnx", external_data=True)
    assert contents(tmp_path) == before
    assert not there or OnnxPatcher(tmp_path / "g.onnx").run(tokens()).any()


@pytest.mark.parametrize(("error", "raised"), ERRORS)
@pytest.mark.parametrize("where", ["onnx", "heads", "check"])
def test_an_export_that_stops_while_it_writes(
    where: str, error: BaseException, raised: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    good(tmp_path)
    module, name = {
        "onnx": (onnx, "save_model"),
        "heads": (heads, "write_heads"),
        "check": (check, "compare_on"),
    }[where]
    monkeypatch.setattr(module, name, Interrupted(None, 1, error))
    for target in ("g.onnx", "new/g.onnx"):
        with untouched(tmp_path), pytest.raises(raised):
            export_onnx(small_model(seed=1), tmp_path / target, example=tokens())


def test_a_full_disk_while_heads_are_written(tmp_path: Path, monkeypatch: Any) -> None:
    error = SafetensorError("I/O error: No space left on device\n(os error 28)")
    monkeypatch.setattr(safetensors_torch, "save_file", Interrupted(None, 1, error))
    with untouched(tmp_path), refused(ExportError, "g.onnx"):
        export_onnx(MODEL, tmp_path / "g.onnx")


def test_an_export_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    good(tmp_path, external_data=True)
    assert "g.onnx.data" in contents(tmp_path)
    export_onnx(MODEL, tmp_path / "g.onnx", precision=PrecisionConfig(low="fp32", mlp="fp32"))
    assert list(contents(tmp_path)) == ["g.onnx"]


@pytest.mark.parametrize("example", [tokens(), tokens()[:1]])
def test_a_graph_that_differs_from_the_model_is_not_kept(
    example: torch.Tensor, tmp_path: Path, monkeypatch: Any
) -> None:
    """The graph of another model, which a single prompt is enough to notice."""
    good(tmp_path)
    real, other = write.build, small_model(seed=1)
    monkeypatch.setattr(write, "build", lambda model, *rest: real(other, *rest))
    with untouched(tmp_path), refused(ExportError):
        export_onnx(MODEL, tmp_path / "g.onnx", example=example)


def test_an_example_is_patched_with_something_else(tmp_path: Path, monkeypatch: Any) -> None:
    """Also a single prompt, which has no other to be patched with."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(
        check, "check_values", lambda p, m, clean, corrupt, **_: given.append((clean, corrupt))
    )
    export_onnx(MODEL, tmp_path / "g.onnx", example=tokens()[:1])
    ((clean, corrupt),) = given
    assert (clean != corrupt).all() and corrupt.max() < MODEL.cfg.d_vocab


def test_positions_of_the_output(problem: pahq.Problem, tmp_path: Path) -> None:
    model, batch = problem.model, next(iter(problem.train_loader))
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx", precision=FULL, positions="model"))
    assert patcher.description.positions == "last"
    assert (
        off(patcher.run(batch.clean.numpy()), model(batch.clean)[model.out_slice].detach()) <= TOLERANCE
    )


def test_weights_in_a_file_of_their_own(problem: pahq.Problem, tmp_path: Path) -> None:
    model, batch = problem.model, next(iter(problem.train_loader))
    inside = OnnxPatcher(export_onnx(model, tmp_path / "a.onnx"), threads=1)
    apart = OnnxPatcher(export_onnx(model, tmp_path / "b.onnx", external_data=True), threads=1)
    assert (tmp_path / "b.onnx.data").stat().st_size > 10 * (tmp_path / "b.onnx").stat().st_size / 10
    assert np.array_equal(inside.run(batch.clean.numpy()), apart.run(batch.clean.numpy()))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.heads.safetensors", "a.onnx", "b.heads.safetensors", "b.onnx", "b.onnx.data"
    ]  # fmt: skip


def test_an_output_slice_that_no_graph_has(tmp_path: Path) -> None:
    model = small_model()
    model.out_slice = (slice(None), slice(2, 4))
    with untouched(tmp_path), refused(ExportError, "positions"):
        export_onnx(model, tmp_path / "g.onnx", positions="model")
