"""Graph files and settings that `OnnxPatcher` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.description import METADATA_KEY
from pahq_exporters.session import default_threads
from pahq_plugin.errors import ExportError, PahqError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.refused import refused
from tests.helpers.small import small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With graphs of one model."""
    made, model = tmp_path_factory.mktemp("graphs"), small_model()
    export_onnx(model, made / "dense.onnx")
    export_onnx(model, made / "sweep.onnx", graph="sweep")
    export_onnx(model, made / "full.onnx", precision=PrecisionConfig(low="fp32", mlp="fp32"))
    return made


def with_metadata(source: Path, target: Path, **changes: Any) -> Path:
    """A copy whose description has other values."""
    model = onnx.load(str(source))
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save_model(model, str(target))
    return target


def test_damaged_and_foreign_files(folder: Path, tmp_path: Path, capfd: Any) -> None:
    good = (folder / "full.onnx").read_bytes()
    path = tmp_path / "g.onnx"
    for content in (b"", b"hello\nworld", good[:100], good[: len(good) // 2], good[:-1], b"\0" * 5000):
        path.write_bytes(content)
        with refused(ExportError, str(path)):
            OnnxPatcher(path)
    path.write_bytes(good)
    assert OnnxPatcher(path).description.graph == "dense"
    model = onnx.load(str(path))
    for value in ("", "no JSON", "{}"):
        model.metadata_props[0].value = value
        onnx.save_model(model, str(path))
        with refused(ExportError, str(path), "damaged"):
            OnnxPatcher(path)
    del model.metadata_props[:]
    onnx.save_model(model, str(path))
    with refused(ExportError, str(path), "not a graph of this package", METADATA_KEY):
        OnnxPatcher(path)
    for missing in (tmp_path / "none.onnx", tmp_path):
        with refused(ExportError, f"no file {missing}"):
            OnnxPatcher(missing)
    assert capfd.readouterr() == ("", "")  # ONNX Runtime prints nothing of its own


LIES: list[dict[str, Any]] = [
    {"graph": "sweep"},
    {"d_model": 33},
    {"start_layer": 1, "n_earlier": 6, "destinations": [
        {"name": "Resid End", "layer": 2, "slot": "output", "head": -1, "reads": 11}]},
    {"sources": ["Resid Start"], "destinations": [
        {"name": "Resid End", "layer": 2, "slot": "output", "head": -1, "reads": 1}]},
    {"seq_len": 6},
    {"high": "input", "heads_file": "dense.heads.safetensors"},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_about_inputs(lie: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    path = with_metadata(folder / "full.onnx", tmp_path / "g.onnx", **lie)
    with refused(ExportError, str(path), "does not fit its description", "instead of"):
        OnnxPatcher(path)


@pytest.mark.parametrize(
    "lie", [{"d_vocab": 400}, {"d_vocab_out": 41}, {"n_ctx": 99}, {"positions": "last"}]
)
def test_a_description_that_lies_about_sizes(
    lie: dict[str, Any], folder: Path, tmp_path: Path, capfd: Any
) -> None:
    path = with_metadata(folder / "full.onnx", tmp_path / "g.onnx", **lie)
    patcher = OnnxPatcher(path)
    ids = np.full((2, 17), 5) if "n_ctx" in lie else np.full((2, 6), 399 if "d_vocab" in lie else 5)
    with refused(ExportError, str(path), "cannot be run"):
        patcher.run(ids)
    assert capfd.readouterr() == ("", "")  # nor when it runs


def test_files_that_belong_together(folder: Path, tmp_path: Path) -> None:
    path = export_onnx(small_model(), tmp_path / "g.onnx", external_data=True)
    assert OnnxPatcher(path).description.high == "input"
    heads = tmp_path / "g.heads.safetensors"
    right = heads.read_bytes()
    heads.write_bytes((folder / "sweep.heads.safetensors").read_bytes())
    with refused(ExportError, str(heads), "another export"):
        OnnxPatcher(path)
    heads.unlink()
    with refused(ExportError, str(heads), "missing"):
        OnnxPatcher(path)
    heads.write_bytes(right)
    (tmp_path / "g.onnx.data").write_bytes((tmp_path / "g.onnx.data").read_bytes()[:-999])
    with refused(ExportError, str(path)):
        OnnxPatcher(path)
    (tmp_path / "g.onnx.data").unlink()
    with refused(ExportError, str(path)):
        OnnxPatcher(path)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    *[({"mode": mode}, "speed, memory") for mode in ("fast", None, 3, [])],
    *[({"level": level}, "disable, basic") for level in ("most", 3, [])],
    *[({"threads": n}, "threads") for n in (0, -1, 1.5, True, "2", 10**12)],
    *[({"providers": p}, "cpu") for p in ("npu", ["npu"], [None], [3], [["cpu"]], ["cpu", "npu"])],
    *[({"providers": p}, "must be a list") for p in (3, {"cpu": 1})],
    ({"providers": "cuda"}, "onnxruntime-gpu"),
]


def _available() -> list[str]:
    return onnxruntime.get_available_providers()


@pytest.mark.parametrize(("setting", "word"), SETTINGS)
def test_settings_that_there_are_not(setting: dict[str, Any], word: str, folder: Path) -> None:
    if setting == {"providers": "cuda"} and "CUDAExecutionProvider" in _available():
        pytest.skip("CUDA is there")
    with refused(PahqError, word):
        OnnxPatcher(folder / "dense.onnx", **setting)


@pytest.mark.parametrize("text", ["", "0", "-1", "²", "1.5", "many", "9" * 5000, "4,2"])
def test_a_strange_number_of_threads_counts_for_nothing(text: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert default_threads() is None
