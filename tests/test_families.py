"""Model families, as TransformerLens makes them and `pahq.adapt` accepts them: every decision against
full host forwards on both engines, exports, mixed precision, and the model given back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.errors import ExportError, ModelError, PahqError
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.families import FAMILIES, LENGTH, family_loader, family_model
from tests.helpers.replay import replay
from tests.helpers.rounded import patched_logits

ON_THE_HOST = {"gemma-2": "norms after attention", "shortformer": "shortformer positions"}
"""Families that the incremental engine hands on, and what its line says."""

NOT_EXPORTED = {
    "gemma-2": "norms after attention",
    "shortformer": "'shortformer' positions",
    "mixtral": "blocks.0.mlp, a MoE",
}

EXPERTS = pahq.PrecisionConfig(low="int8", mlp="fp32")
"""Experts stay in FP32."""

FULL = pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full")

ABLATIONS = (AblationType.RESAMPLE, AblationType.ZERO, AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT)
CELLS = [(ablation, positional) for ablation in ABLATIONS for positional in (False, True)]


BY_POSITIONS = ("pythia", "bloom", "attn-only")
"""Families whose cell in the sample is one of edges by positions."""

HALF_OF_THEM = [
    pytest.param(family, marks=[] if i % 2 else pytest.mark.full) for i, family in enumerate(FAMILIES)
]
"""All families, every other one in the sample."""

THRESHOLDS = {False: 0.003, True: 0.001}
"""For edges of all positions and of single ones: every search keeps some edges and removes most."""


def grid() -> list[Any]:
    """Every family, ablation, and positions or not; one cell of each family is in the sample."""
    return [
        pytest.param(
            family,
            ablation,
            positional,
            id=f"{family}-{ablation.name.lower()}-{'positions' if positional else 'whole'}",
            marks=[] if cell == 2 * (i % 3) + (family in BY_POSITIONS) else pytest.mark.full,
        )
        for i, family in enumerate(FAMILIES)
        for cell, (ablation, positional) in enumerate(CELLS)
    ]


def adapted(family: str, positional: bool = False, **changes: Any) -> PatchableModel:
    return pahq.adapt(family_model(family, **changes), seq_len=LENGTH if positional else None)


@contextmanager
def heard() -> Iterator[list[warnings.WarningMessage]]:
    """The plugin's warnings; any other is an error, as everywhere."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("error")
        warnings.simplefilter("always", pahq.PahqWarning)
        yield said


def text(said: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(one.message) for one in said)


def search(
    model: PatchableModel,
    family: str,
    method: str,
    engine: str,
    positional: bool = False,
    **options: Any,
) -> pahq.Discovery:
    if family == "mixtral" and method == "pahq":
        options["precision"] = EXPERTS
    return pahq.discover(
        model, family_loader(positional), method=method, engine=engine, progress=False, **options
    )


def state(model: PatchableModel) -> dict[str, Any]:
    """All that a search may not change: parameters, masks, buffers, flags, modes."""
    kept: dict[str, Any] = {name: value.clone() for name, value in model.state_dict().items()}
    kept |= {f"cfg.{name}": value for name, value in vars(model.cfg).items()}
    kept |= {f"training.{name}": module.training for name, module in model.named_modules()}
    return kept | {f"own.{name}": "forward" in vars(module) for name, module in model.named_modules()}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        for name, value in before.items()
    )


@pytest.mark.parametrize(("family", "ablation", "positional"), grid())
def test_every_decision_is_that_of_full_host_forwards(
    family: str, ablation: AblationType, positional: bool
) -> None:
    """Searches that take the same decisions are replayed once."""
    at, model = THRESHOLDS[positional], adapted(family, positional)
    before, replayed = state(model), set[tuple[Any, ...]]()
    for engine in ("incremental", "host"):
        for method in ("acdc", "pahq"):
            with heard() as said:
                options: dict[str, Any] = {"threshold": at, "ablation": ablation}
                result = search(model, family, method, engine, positional, **options)
            used = "host" if family in ON_THE_HOST else engine
            assert result.settings["engine"] == used
            assert (used == engine) == (ON_THE_HOST.get(family, "none") not in text(said))
            assert same(before, state(model))
            taken = tuple((decision.edge, decision.kept) for decision in result.decisions)
            if taken in replayed:
                continue
            replayed.add(taken)
            report = replay(
                model, family_loader(positional), result.decisions, threshold=at, ablation=ablation
            )
            assert report.agrees, (engine, method, report)
            assert 0.02 <= report.share_kept <= 0.6, (engine, method, report)


@pytest.mark.parametrize("family", HALF_OF_THEM)
def test_graphs_are_the_host_or_refused_by_name(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    if family in NOT_EXPORTED:
        with pytest.raises(ExportError, match=NOT_EXPORTED[family]):
            export_onnx(model, tmp_path / "g.onnx", precision=FULL)
        return
    batch = next(iter(family_loader()))
    outputs = src_ablations(model, batch.corrupt)
    for graph in ("dense", "sweep"):
        path = export_onnx(model, tmp_path / f"{graph}.onnx", graph=graph, precision=FULL)  # type: ignore[arg-type]
        patcher = OnnxPatcher(path, threads=1)
        for edge in random.Random(0).sample(canonical_edges(model), 5):
            ours = patcher.run(batch.clean.numpy(), outputs.numpy(), edges=[edge])
            theirs = patched_logits(model, batch.clean, outputs, {edge})
            assert np.abs(ours - theirs.numpy()).max() <= 1e-5, (graph, edge)


@pytest.mark.parametrize("family", HALF_OF_THEM)
def test_the_full_policy_is_the_models_own_precision(family: str) -> None:
    model, batch = adapted(family), next(iter(family_loader()))
    outputs, before = src_ablations(model, batch.corrupt), state(model)
    chosen = set(random.Random(0).sample(canonical_edges(model), 8))
    own, patched = model(batch.clean), patched_logits(model, batch.clean, outputs, chosen)
    precision = pahq.PrecisionConfig(
        low="int8", mlp="fp32" if family == "mixtral" else "int8", policy="full"
    )
    with pahq.mixed_precision(model, precision):
        assert (model(batch.clean) - own).abs().max() <= 1e-5
        assert (patched_logits(model, batch.clean, outputs, chosen) - patched).abs().max() <= 1e-5
    assert same(before, state(model))


@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_experts_in_few_bits_are_refused_by_name(engine: str) -> None:
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp is a MoE.*mlp=\"fp32\""):
        pahq.discover(
            adapted("mixtral"), family_loader(), engine=engine, progress=False,
            precision=pahq.PrecisionConfig(low="int8", mlp="int8"),
        )  # fmt: skip


HALF = [
    pytest.param(family, dtype, marks=[] if keep else pytest.mark.full)
    for family in FAMILIES
    for dtype, keep in (
        (torch.bfloat16, family in ("qwen-2", "gemma-2")),
        (torch.float16, False),
    )
    if family != "mixtral"
]


@pytest.mark.parametrize(("family", "dtype"), HALF)
def test_models_in_half_precision_are_searched_in_their_own(family: str, dtype: torch.dtype) -> None:
    """Exact effects of the host's own forwards, bit for bit."""
    model = adapted(family, dtype=dtype)
    before = state(model)
    for method in ("acdc", "pahq"):
        with heard() as said:
            result = search(model, family, method, "incremental", threshold=0.01)
        assert result.settings["engine"] == "host"
        assert f"weights in {dtype}" in text(said) or family in ON_THE_HOST
        report = replay(model, family_loader(), result.decisions, threshold=0.01)
        assert report.agrees, report
        assert 0.02 <= report.share_kept <= 0.6, report
        assert method == "pahq" or report.worst_absolute == 0
        assert same(before, state(model))


def test_experts_in_another_type_than_attention_are_refused() -> None:
    """TransformerLens makes them in float32, whatever the model's type, and then cannot run."""
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp is in torch\.float32.*to\(torch\.float32\)"):
        pahq.discover(adapted("mixtral", dtype=torch.bfloat16), family_loader(), progress=False)


def test_graphs_of_half_precision_models_compute_in_fp32(tmp_path: Path) -> None:
    """So they are the converted model, and do not decide for the other."""
    model, batch = adapted("llama-3", dtype=torch.bfloat16), next(iter(family_loader()))
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx", precision=FULL), threads=1)
    ours = patcher.run(batch.clean.numpy())
    with pytest.raises(PahqError, match=r"weights are in torch\.bfloat16, but graphs compute in FP32"):
        search(model, "llama-3", "acdc", "onnx")
    model.wrapped_model.to(torch.float32)
    assert np.abs(ours - model(batch.clean).numpy()).max() <= 1e-5
