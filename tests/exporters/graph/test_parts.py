"""Parts of a transformer's forward: random architectures and all kinds of models against the host."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.types import Edge
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.check import check
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.architectures import Architecture, build, random_architecture
from tests.helpers.rounded import FULL, TOLERANCE, WEIGHT_ONLY, off, patched_logits, rounded_weights
from tests.helpers.small import KINDS, OTHER_KINDS, loader, small_model

WITHOUT_NORM = 1e-3
"""Without a norm queries and keys grow to the hundreds, and the host's own FP32 is as far from FP64."""


def supported(seeds: range) -> list[Architecture]:
    """Random architectures that graphs hold: FP32."""
    made = (random_architecture(seed) for seed in seeds)
    return [a for a in made if a.dtype is torch.float32]


def head_of(edge: Edge) -> tuple[int, int] | None:
    if edge.dest.head_idx is None:
        return None
    return int(edge.dest.module_name.split(".")[1]), edge.dest.head_idx


def compare(model: PatchableModel, batch: Any, precision: pahq.PrecisionConfig, path: Path) -> None:
    """Dense and sweep graphs on random single edges, the dense one on random sets in one call."""
    tolerance = WITHOUT_NORM if model.cfg.normalization_type is None else TOLERANCE
    outputs, edges, draw = src_ablations(model, batch.corrupt), canonical_edges(model), random.Random(2)
    singles = draw.sample(edges, min(6, len(edges)))
    sets = [set(draw.sample(edges, draw.randint(0, len(edges)))) for _ in range(3)]
    patchers = {
        graph: OnnxPatcher(
            export_onnx(model, path / f"{graph}.onnx", graph=graph, precision=precision), threads=1
        )  # type: ignore[arg-type]
        for graph in (("dense", "sweep") if model.seq_len is None else ("dense",))
    }
    given = batch.clean.numpy(), outputs.numpy()
    masks = np.stack([patchers["dense"].mask(chosen) for chosen in sets])
    together = patchers["dense"].run(*given, mask=masks)
    with rounded_weights(model, precision):
        for ours, chosen in zip(together, sets, strict=True):
            assert off(ours, patched_logits(model, batch.clean, outputs, chosen)) <= tolerance
    for edge in singles:
        with rounded_weights(model, precision, head_of(edge)):
            theirs = patched_logits(model, batch.clean, outputs, {edge})
        for graph, patcher in patchers.items():
            assert off(patcher.run(*given, edges=[edge]), theirs) <= tolerance, (graph, edge)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, id=f"seed{a.seed}", marks=[] if i < 8 else pytest.mark.full)
        for i, a in enumerate(supported(range(300, 400)))
    ],
)
def test_random_architectures(architecture: Architecture, tmp_path: Path) -> None:
    model, batches = build(architecture)
    precision = [FULL, *WEIGHT_ONLY][architecture.seed % 5]
    compare(model, next(iter(batches)), precision, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, marks=() if i % 2 else pytest.mark.full)
        for i, changes in enumerate([*KINDS.values(), *OTHER_KINDS])
    ],
    ids=str,
)
def test_kinds_of_models(changes: dict[str, Any], tmp_path: Path) -> None:
    """Grouped keys have no rounded weights for one head, so there the backend is the reference."""
    model = small_model(**changes)
    if "n_key_value_heads" not in changes:
        compare(model, next(iter(loader())), WEIGHT_ONLY[0], tmp_path)
    for graph in ("dense", "sweep"):
        for precision in (FULL, WEIGHT_ONLY[2]):
            path = export_onnx(model, tmp_path / "checked.onnx", graph=graph, precision=precision)  # type: ignore[arg-type]
            lines = check(path, model, loader())
            assert len(lines) == 5 and "relative" in lines[-1]


@pytest.mark.parametrize("edited", [(0, 1), (1,)])
def test_each_block_keeps_its_own_mask(edited: tuple[int, ...], tmp_path: Path) -> None:
    """Blocks with masks of different edits, or an edited beside a usual one, do not share them."""
    model = small_model()
    for layer in edited:
        model.blocks[layer].attn.mask[-2:, layer - 5] = False  # hides a token from the last two
    compare(model, next(iter(loader())), FULL, tmp_path)
