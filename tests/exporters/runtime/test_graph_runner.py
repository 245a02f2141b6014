"""Files of graphs: what cannot be loaded, what lies about itself, and inputs that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from auto_circuit.utils.ablation_activations import src_ablations
from onnx import numpy_helper

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.description import METADATA_KEY
from pahq_plugin.errors import ConfigError, ExportError
from tests.helpers.patchers import CLEAN, CORRUPT, EDGE, Graphs
from tests.helpers.refused import refused
from tests.helpers.small import VOCABULARY, loader, small_model


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
        with refused(ExportError, str(path)):
            OnnxPatcher(path)
    del model.metadata_props[:]
    onnx.save_model(model, str(path))
    with refused(ExportError, METADATA_KEY):
        OnnxPatcher(path)
    for missing in (tmp_path / "none.onnx", tmp_path):
        with refused(ExportError, str(missing)):
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
    with refused(ExportError, str(path)):
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
    with refused(ExportError, str(path)):
        patcher.run(ids)
    assert capfd.readouterr() == ("", "")  # nor when it runs


def test_files_that_belong_together(folder: Path, tmp_path: Path) -> None:
    path = export_onnx(small_model(), tmp_path / "g.onnx", external_data=True)
    assert OnnxPatcher(path).description.high == "input"
    heads = tmp_path / "g.heads.safetensors"
    right = heads.read_bytes()
    heads.write_bytes((folder / "sweep.heads.safetensors").read_bytes())
    with refused(ExportError, str(heads)):
        OnnxPatcher(path)
    heads.unlink()
    with refused(ExportError, str(heads)):
        OnnxPatcher(path)
    heads.write_bytes(right)
    (tmp_path / "g.onnx.data").write_bytes((tmp_path / "g.onnx.data").read_bytes()[:-999])
    with refused(ExportError, str(path)):
        OnnxPatcher(path)
    (tmp_path / "g.onnx.data").unlink()
    with refused(ExportError, str(path)):
        OnnxPatcher(path)


def test_fed_inputs_that_do_not_fit(graphs: Graphs) -> None:
    right = graphs.dense.inputs_for(graphs.dense.prompts(CLEAN, CORRUPT), [EDGE])
    assert np.isfinite(graphs.dense.feed(right)).all()
    for name, value in right.items():
        for bad in (value[None], value.astype(np.float64), "x", [[1], [1, 2]]):
            with refused(ConfigError, name):
                graphs.dense.feed(right | {name: bad})
        with refused(ConfigError, name):
            graphs.dense.feed({k: v for k, v in right.items() if k != name})
    for bad in ({}, right | {"more": CLEAN}):
        with refused(ConfigError, "inputs"):
            graphs.dense.feed(bad)
    with refused(ConfigError, "corrupt"):
        graphs.dense.feed(right | {"tokens": CLEAN[:2]})
    with refused(ExportError):
        graphs.dense.feed(right | {"tokens": CLEAN + VOCABULARY})


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model, batch, path = small_model(), next(iter(loader())), tmp_path / "g.onnx"
    export_onnx(model, path, precision=pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full"))
    written = onnx.load(path)
    weight = max(written.graph.initializer, key=lambda one: len(one.raw_data))
    broken = np.full_like(numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    onnx.save(written, path)
    patcher = OnnxPatcher(path, threads=1)
    prompts = patcher.prompts(batch.clean.numpy(), src_ablations(model, batch.corrupt).numpy())
    with refused(ExportError, str(path)):
        patcher.run_each(prompts, edges=list(model.edges)[:1])
