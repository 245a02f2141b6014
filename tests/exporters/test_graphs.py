"""Exported graphs against the host model itself, with rounded weights written into it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from auto_circuit.types import Edge
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.check import check
from pahq_exporters.graph.write import DEFAULT
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.architectures import Architecture, build, random_architecture
from tests.helpers.rounded import patched_logits, rounded_weights
from tests.helpers.small import KINDS, OTHER_KINDS, loader, small_model

FULL = pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full")
TOLERANCE = 1e-5
WITHOUT_NORM = 1e-3
"""Without a norm queries and keys grow to the hundreds, and the host's own FP32 is as far from FP64."""

WEIGHT_ONLY = [
    pahq.PrecisionConfig(low="fp8_e4m3", mlp="fp8_e4m3", activations="high"),
    pahq.PrecisionConfig(low="fp8_e5m2", mlp="bf16", scale="none", activations="high"),
    pahq.PrecisionConfig(
        low="int8", mlp="int8", scale="head", activations="high", parts=("qkv", "output", "unembed")
    ),
    pahq.PrecisionConfig(low="fp16", mlp="int8", scale="tensor", activations="high"),
]


def off(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> float:
    """Largest difference of logits, relative to the largest logit."""
    expected = theirs.numpy()
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / max(1.0, np.abs(expected).max()))


def supported(seeds: range) -> list[Architecture]:
    """Random architectures that graphs hold: FP32."""
    made = (random_architecture(seed) for seed in seeds)
    return [a for a in made if a.dtype is torch.float32]


def head_of(edge: Edge) -> tuple[int, int] | None:
    if edge.dest.head_idx is None:
        return None
    return int(edge.dest.module_name.split(".")[1]), edge.dest.head_idx


@pytest.fixture(scope="module")
def problem() -> pahq.Problem:
    return pahq.load_problem("ioi")


@pytest.fixture(scope="module")
def prompts(problem: pahq.Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean tokens and the outputs of sources on the corrupt ones."""
    batch = next(iter(problem.train_loader))
    return batch.clean, src_ablations(problem.model, batch.corrupt)


def test_every_head_of_the_bundled_model_is_high_alone(
    problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    """Weight-only E4M3: equal to the host with rounded weights, and at least ten times as far from the
    graph with all heads low."""
    model, (tokens, outputs) = problem.model, prompts
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx"), threads=1)
    bound = patcher.prompts(tokens.numpy(), outputs.numpy())
    all_low = patcher.run(bound, head=None)
    edges = canonical_edges(model)
    patched = set(random.Random(0).sample(edges, 30))
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            ours = patcher.run(bound, head=(layer, head))
            with rounded_weights(model, DEFAULT, (layer, head)):
                theirs = model(tokens)
                theirs_patched = patched_logits(model, tokens, outputs, patched)
            error = off(ours, theirs)
            assert error <= TOLERANCE, (layer, head)
            assert np.array_equal(ours.argmax(-1), theirs.argmax(-1).numpy())
            assert off(all_low, theirs) >= 10 * max(error, 1e-7), (layer, head)
            ours_patched = patcher.run(bound, edges=patched, head=(layer, head))
            assert off(ours_patched, theirs_patched) <= TOLERANCE, (layer, head)


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_an_fp32_export_is_the_host(
    graph: Any, problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, (tokens, outputs) = problem.model, prompts
    patcher = OnnxPatcher(
        export_onnx(model, tmp_path / "g.onnx", graph=graph, precision=FULL), threads=1
    )
    assert patcher.description.heads_file is None
    bound = patcher.prompts(tokens.numpy(), outputs.numpy())
    assert np.abs(patcher.sources(tokens.numpy()) - src_ablations(model, tokens).numpy()).max() < 1e-5
    for edge in random.Random(1).sample(canonical_edges(model), 25):
        ours = patcher.run(bound, edges=[edge])
        theirs = patched_logits(model, tokens, outputs, {edge})
        assert off(ours, theirs) <= TOLERANCE, edge
        assert np.array_equal(ours.argmax(-1), theirs.argmax(-1).numpy()), edge


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


@pytest.mark.parametrize("precision", WEIGHT_ONLY, ids=lambda p: f"{p.low}-{p.mlp}-{p.scale}")
def test_the_backend_rounds_weights_only(precision: pahq.PrecisionConfig) -> None:
    model, batch = small_model(), next(iter(loader()))
    with pahq.mixed_precision(model, precision) as backend, torch.no_grad():
        for head in (None, (0, 1), (1, 3)):
            backend.investigate(head)
            ours = model(batch.clean)
            with rounded_weights(model, precision, head):
                backend.investigate(None)
                with backend.own_precision():
                    theirs = model(batch.clean)
            assert off(ours.numpy(), theirs) <= TOLERANCE


def test_a_later_start(problem: pahq.Problem, tmp_path: Path) -> None:
    """The graph of blocks 2 and 3, fed with what comes before."""
    model, batch = problem.model, next(iter(problem.train_loader))
    clean, corrupt = (src_ablations(model, tokens) for tokens in (batch.clean, batch.corrupt))
    _, cache = model.run_with_cache(batch.clean, names_filter=["blocks.2.hook_resid_pre"])
    residual = cache["blocks.2.hook_resid_pre"].detach()
    late = [e for e in canonical_edges(model) if e.dest.module_name.split(".")[1] in "23"]
    for graph in ("dense", "sweep"):
        path = export_onnx(model, tmp_path / "late.onnx", graph=graph, precision=FULL, start_layer=2)  # type: ignore[arg-type]
        patcher = OnnxPatcher(path, threads=1)
        assert set(patcher.description.edges()) == {edge.name for edge in late}
        earlier = clean[: patcher.description.n_earlier]
        bound = patcher.prompts(
            residual=residual.numpy(), earlier=earlier.numpy(), corrupt=corrupt.numpy()
        )
        for edge in random.Random(3).sample(late, 12):
            theirs = patched_logits(model, batch.clean, corrupt, {edge})
            assert off(patcher.run(bound, edges=[edge]), theirs) <= TOLERANCE, (graph, edge)


def test_a_head_fixed_at_export(
    problem: pahq.Problem, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, (tokens, _) = problem.model, prompts
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "f.onnx", head=(1, 5)), threads=1)
    assert not any(node.op_type == "If" for node in onnx.load(tmp_path / "f.onnx").graph.node)
    with rounded_weights(model, DEFAULT, (1, 5)):
        theirs = model(tokens)
    assert off(patcher.run(tokens.numpy()), theirs) <= TOLERANCE
    assert off(patcher.run(tokens.numpy(), head=(1, 5)), theirs) <= TOLERANCE


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_any_batch_and_length_from_one_file(graph: Any, tmp_path: Path) -> None:
    """Batches of 1 to 16 prompts, 1 token to the whole context."""
    model = small_model()
    patcher = OnnxPatcher(
        export_onnx(model, tmp_path / "g.onnx", graph=graph, precision=FULL), threads=1
    )
    context, draw = model.cfg.n_ctx, torch.Generator().manual_seed(0)
    edge = canonical_edges(model)[5]
    for batch, length in [(1, 1), (1, context), (16, 1), (16, context), (3, 7), (7, 3), (2, 2)]:
        tokens, corrupt = (
            torch.randint(model.cfg.d_vocab, (batch, length), generator=draw) for _ in range(2)
        )
        outputs = src_ablations(model, corrupt)
        ours = patcher.run(tokens.numpy(), outputs.numpy(), edges=[edge])
        assert off(ours, patched_logits(model, tokens, outputs, {edge})) <= TOLERANCE
        by_tokens = patcher.run(tokens.numpy(), corrupt.numpy(), edges=[edge])
        assert np.abs(by_tokens - ours).max() <= 1e-4


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


def test_rounded_activations_are_near_the_backend(problem: pahq.Problem, tmp_path: Path) -> None:
    """Values between two codes may fall to either side, but nearer than the format's own error."""
    model, batch = problem.model, next(iter(problem.train_loader))
    precision = pahq.PrecisionConfig(low="int8", mlp="int8", policy="uniform")
    patcher = OnnxPatcher(export_onnx(model, tmp_path / "g.onnx", precision=precision), threads=1)
    ours, own = patcher.run(batch.clean.numpy()), model(batch.clean).detach().numpy()
    with pahq.mixed_precision(model, precision), torch.no_grad():
        theirs = model(batch.clean).numpy()
    assert np.square(ours - theirs).mean() < 0.1 * np.square(own - theirs).mean()
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node}
