"""Graphs of one small model, and of another, ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.small import patchable, small_model, tokens, transformer

FULL = PrecisionConfig(low="fp32", mlp="fp32")


@dataclass
class Graphs:
    """Exports of one small model, and of another."""

    dense: OnnxPatcher
    sweep: OnnxPatcher
    full: OnnxPatcher
    late: OnnxPatcher
    fixed: OnnxPatcher
    not_first: OnnxPatcher
    by_position: OnnxPatcher


def exported(folder: Path) -> Graphs:
    """Write them into a folder."""
    model = small_model()

    def patcher(name: str, exported: Any = model, **options: Any) -> OnnxPatcher:
        return OnnxPatcher(export_onnx(exported, folder / f"{name}.onnx", **options), threads=1)

    others = small_model()
    others.out_slice = (slice(None), slice(1, None))
    return Graphs(
        dense=patcher("dense"),
        sweep=patcher("sweep", graph="sweep"),
        full=patcher("full", precision=FULL),
        late=patcher("late", start_layer=1),
        fixed=patcher("fixed", head=(1, 2)),
        not_first=patcher("not_first", others, positions="model"),
        by_position=patcher("by_position", patchable(transformer(), seq_len=6)),
    )


EDGE = "A0.1->MLP 1"
INTO_HEAD = "A0.1->A1.2.Q"
CLEAN, CORRUPT = tokens(0).numpy(), tokens(1).numpy()
