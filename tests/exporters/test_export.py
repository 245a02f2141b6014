"""Exports that are refused: models and options that no graph can hold, in one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.errors import ConfigError, ExportError, GraphError, ModelError, PahqError, PromptError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.refused import refused, untouched
from tests.helpers.small import loader, patchable, small_model, tokens, transformer

MODEL = small_model()


def changed(change: Callable[[PatchableModel], object], **arguments: Any) -> PatchableModel:
    model = small_model(**arguments)
    change(model)
    return model


def flag(**flags: Any) -> PatchableModel:
    return changed(lambda model: vars(model.cfg).update(flags))


MODELS: dict[str, tuple[Callable[[], Any], type[PahqError], tuple[str, ...]]] = {
    "nothing": (lambda: None, ModelError, ("PatchableModel",)),
    "not patchable": (transformer, ModelError, ("PatchableModel",)),
    "no transformer": (
        lambda: patchable_model(MicroModel(), factorized=True, slice_output="last_seq"),
        ExportError,
        ("not a transformer; only transformers",),
    ),
    "experts": (
        lambda: small_model(num_experts=4, experts_per_token=2, gated_mlp=True, act_fn="silu"),
        ExportError,
        ("blocks.0.mlp", "MoE"),
    ),
    "double": (lambda: small_model().double(), ModelError, ("float64", "float32")),
    "activation": (
        lambda: flag(act_fn="xielu"),
        ModelError,
        ("no model can be made from the model's configuration", "xielu"),
    ),
    "attention": (
        lambda: changed(lambda m: setattr(m.wrapped_model.blocks[1].attn, "q_norm", torch.nn.Tanh())),
        ExportError,
        ("blocks.1.attn", "norms of queries"),
    ),
    "NaN": (
        lambda: changed(lambda m: m.wrapped_model.blocks[1].attn.W_K.data.fill_(np.nan)),
        ModelError,
        ("blocks.1.attn.W_K", "NaN"),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_no_graph_can_hold(case: str, tmp_path: Path) -> None:
    make, error, words = MODELS[case]
    with untouched(tmp_path), refused(error, *words):
        export_onnx(make(), tmp_path / "g.onnx")


def test_the_advice_for_float64_is_right(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float64)
    model.wrapped_model.to(torch.float32)
    export_onnx(model, tmp_path / "g.onnx", example=tokens())


INT8 = {"low": "int8", "mlp": "int8"}

OPTIONS: list[tuple[dict[str, Any], type[PahqError], str]] = [
    *[({"graph": graph}, ConfigError, "graph") for graph in ("x", None, 3, [])],
    *[({"start_layer": i}, ConfigError, "start_layer") for i in (-1, 2, 1.0, True, "1", None)],
    *[({"positions": p}, ConfigError, "positions") for p in ("last", None, 1, [])],
    *[({"head": h}, GraphError, "head") for h in ((0, 4), (2, 0), "auto", (0,), (True, 0), 0, (-1, 0))],
    ({"head": (0, 1), "start_layer": 1}, GraphError, "1 to 1"),
    *[({"precision": p}, ConfigError, "PrecisionConfig") for p in ("int8", {}, 3)],
    ({"precision": PrecisionConfig(**INT8, parts=("values",))}, ConfigError, "values"),
    ({"precision": PrecisionConfig(**INT8, policy="hybrid")}, ConfigError, "formats="),
    ({"precision": PrecisionConfig(formats={"blocks.9.mlp": "bf16"})}, ConfigError, "blocks.9.mlp"),
    *[({"example": e}, PromptError, "example") for e in (
        tokens()[0], tokens() * 1.0, tokens() + 40, tokens() - 40, tokens()[:0], [[1], [1, 2]], "text",
        torch.zeros(2, 17, dtype=torch.long))],
    ({"example": tokens(), "start_layer": 1}, ConfigError, "start_layer"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "word"), OPTIONS)
def test_an_option_that_there_is_not(
    options: dict[str, Any], error: type[PahqError], word: str, tmp_path: Path
) -> None:
    with untouched(tmp_path), refused(error, word):
        export_onnx(MODEL, tmp_path / "new" / "g.onnx", **options)


def test_edges_of_single_positions_have_no_sweep(tmp_path: Path) -> None:
    model = patchable(transformer(), seq_len=6)
    with untouched(tmp_path), refused(ConfigError, "seq_len=6"):
        export_onnx(model, tmp_path / "g.onnx", graph="sweep")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_onnx(MODEL, tmp_path / "there.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    words = (package, "pahq-plugin[onnx]")
    with untouched(tmp_path):
        with refused(ExportError, *words):
            export_onnx(MODEL, tmp_path / "g.onnx", example=tokens())
        with refused(ExportError, *words):
            if package == "onnxruntime":
                OnnxPatcher(path)
            pahq.discover(MODEL, loader(), method="acdc", engine="onnx", progress=False)
