"""Validation of an exported graph, in order: names, shapes, values.

1. ``onnx.checker``: every value is produced before it is read, and the opset has every node.
2. Shape inference: all shapes are consistent.
3. The reference evaluator of ``onnx`` against ONNX Runtime, on a tiny model of the same architecture
   exported with the same precision: the graph has the standard's meaning, not just one runtime's.
4. ONNX Runtime, in both modes, against the PyTorch backend in the same precision, on random prompts,
   random sets of edges and random heads.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pahq_exporters.description import METADATA_KEY, Description, from_json
from pahq_exporters.graph.write import export_if
from pahq_exporters.runtime.patcher import OnnxPatcher
from pahq_plugin.errors import ExportError, one_line
from pahq_plugin.host import PatchableModel, PromptDataLoader, patch_mode
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.graph import head as head_of
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.patching import source_outputs
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.models.load import tiny_model
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import FULL_PRECISION, PrecisionConfig, part_and_layer

TOLERANCE = 1e-5
"""Largest allowed difference of a logit, relative to the largest logit, for FP32 arithmetic."""

CORRELATION = 0.98
"""Least allowed correlation of logits if activations are rounded: a value halfway between two codes may
be rounded either way, and the difference grows from block to block."""

SETS = (1, 1, 3, 40)
"""Sizes of the random sets of patched edges, used in turn."""

SEED = 0
"""Seed of random prompts, edges and heads."""


def check(path: Path, model: PatchableModel, loader: PromptDataLoader, trials: int = 8) -> list[str]:
    """Validate a graph exported from ``model``.

    Args:
        path: the graph.
        model: the model.
        loader: random prompts get the shape of its first batch.
        trials: number of random sets of edges to compare.

    Returns:
        One line per check, with the largest differences.

    Raises:
        ExportError: the first check that failed.
    """
    described = described_in(path)
    lines = [check_names(path), check_shapes(path), check_meaning(model, described)]
    shape = collect_batches(model, loader, 1)[0].clean.shape
    draw = torch.Generator().manual_seed(SEED)
    tokens, corrupt = (torch.randint(model.cfg.d_vocab, shape, generator=draw) for _ in range(2))
    return [*lines, *check_values(path, model, tokens, corrupt, trials=trials)]


def compare_on(path: Path, model: PatchableModel, example: Tensor) -> None:
    """Refuse a graph whose logits differ from the model's on prompts ``[batch, pos]``.

    Raises:
        ExportError: they differ, or the file is not a valid ONNX model.
    """
    check_names(path)
    check_values(path, model, example, (example + 1) % model.cfg.d_vocab, trials=2)


def described_in(path: Path) -> Description:
    """Read the description in a graph's metadata."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # errors of protobuf and of the file system
        raise ExportError(f"{path} is not an ONNX model ({one_line(error)})") from None
    return from_json({entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY), path)


def check_names(path: Path) -> str:
    """Check names and types with ``onnx.checker``."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, OSError) as error:
        raise ExportError(f"{path}: onnx.checker rejects it ({one_line(error)})") from None
    return "names: onnx.checker accepts the file"


def check_shapes(path: Path) -> str:
    """Check shapes with shape inference."""
    import onnx

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            onnx.shape_inference.infer_shapes_path(
                str(path), str(Path(folder) / "inferred.onnx"), check_type=True, strict_mode=True,
                data_prop=True,
            )  # fmt: skip
        except (onnx.shape_inference.InferenceError, RuntimeError) as error:
            raise ExportError(f"{path}: shapes are inconsistent ({one_line(error)})") from None
    return "shapes: inference finds no contradiction"


def check_meaning(model: PatchableModel, described: Description) -> str:
    """Compare the reference evaluator with ONNX Runtime on a tiny model of the same architecture."""
    from onnx.reference import ReferenceEvaluator

    tiny = tiny_model(model, SEED)
    precision = for_blocks(read_precision(described), tiny.cfg.n_layers)
    worst, size = 0.0, 1.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        export_if(None, tiny, path, described.graph, precision)  # logits at all positions
        patcher = OnnxPatcher(path, threads=1)
        evaluator = ReferenceEvaluator(str(path))
        for inputs in _feeds(patcher):
            theirs = np.asarray(evaluator.run(["logits"], inputs)[0])  # type: ignore[index]
            ours = patcher.feed(inputs)
            worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # keeps NaN
            size = max(size, float(np.abs(theirs).max()))
    if precision.activations == "high" and not worst <= TOLERANCE * size:
        raise ExportError(
            f"on a tiny model of this architecture ONNX Runtime and the reference evaluator differ by "
            f"{worst:.1e} in logits of up to {size:.1f}"
        )
    return (
        f"meaning: the reference evaluator agrees to {worst:.1e} on a tiny model (logits to {size:.1f})"
    )


def read_precision(described: Description) -> PrecisionConfig:
    """Return the precision that a graph was exported with."""
    record = described.precision
    return FULL_PRECISION if record is None else PrecisionConfig.from_record(record)


def for_blocks(precision: PrecisionConfig, n_layers: int) -> PrecisionConfig:
    """Adapt ``precision`` to a model of ``n_layers`` blocks: they take the formats of the first blocks
    that have their own."""
    named = [(*part_and_layer(name), chosen) for name, chosen in dict(precision.formats).items()]
    layers = sorted({layer for _, layer, _ in named if layer is not None})[:n_layers]
    formats = {
        part if layer is None else f"blocks.{layers.index(layer)}.{part}": chosen
        for part, layer, chosen in named
        if layer is None or layer in layers
    }
    return replace(precision, formats=formats)


def _feeds(patcher: OnnxPatcher) -> Iterator[dict[str, Any]]:
    """Yield inputs of the tiny graph, with one patched edge into each kind of destination."""
    draw, known = np.random.default_rng(SEED), patcher.description
    tokens = draw.integers(0, known.d_vocab, (2, min(4, known.n_ctx)))
    corrupt = draw.standard_normal((len(known.sources), *tokens.shape, known.d_model))
    prompts = patcher.prompts(tokens, corrupt.astype(np.float32))
    for dest in {dest.slot: dest for dest in known.destinations}.values():
        yield patcher.inputs_for(prompts, [f"{known.sources[0]}->{dest.name}"])


def check_values(
    path: Path, model: PatchableModel, tokens: Tensor, corrupt: Tensor, *, trials: int
) -> list[str]:
    """Compare ONNX Runtime in both modes with the PyTorch backend; returns one line per mode.

    Args:
        path: the graph.
        model: the model that it was exported from.
        tokens, corrupt: ``[batch, pos]``.
        trials: number of random sets of edges to compare.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    lines = []
    for mode in ("speed", "memory"):
        patcher = OnnxPatcher(path, mode=mode, threads=torch.get_num_threads())
        start = patcher.description.start_layer
        if start:
            return [f"values: not compared, because the graph starts at block {start}"]
        precision = read_precision(patcher.description)
        worst, size, least, equal = 0.0, 1.0, 1.0, 0
        for ours, theirs in _pairs(patcher, model, precision, tokens, corrupt, trials):
            worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # keeps NaN
            size = max(size, float(np.abs(theirs).max()))
            least = float(np.minimum(least, np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]))
            equal += bool((ours.argmax(-1) == theirs.argmax(-1)).all())
        exact = precision.is_exact or precision.activations == "high"
        if (exact and not worst <= TOLERANCE * size) or (not exact and not least >= CORRELATION):
            raise ExportError(
                f"{path}, mode {mode}: logits differ from PyTorch's by {worst:.1e}, relative "
                f"{worst / size:.1e} (at most {TOLERANCE:.0e}), correlation {least:.4f}"
            )
        lines.append(
            f"values, mode {mode}: logits differ from PyTorch's by at most {worst:.1e} (relative "
            f"{worst / size:.1e}), the same likeliest tokens in {equal} of {trials} runs"
        )
    return lines


def _pairs(
    patcher: OnnxPatcher,
    model: PatchableModel,
    precision: PrecisionConfig,
    tokens: Tensor,
    corrupt: Tensor,
    trials: int,
) -> Iterator[tuple[Any, Any]]:
    """Yield logits of ONNX Runtime and of PyTorch under random patches."""
    draw, known = random.Random(SEED), patcher.description
    edges, device = canonical_edges(model), next(model.parameters()).device
    seen = {"all": slice(None), "last": -1, "not_first": slice(1, None)}[known.positions]
    with borrowed(model), torch.inference_mode():
        outputs = source_outputs(model, corrupt.to(device))
        prompts = patcher.prompts(tokens.numpy(), outputs.float().cpu().numpy())
        with mixed_precision(model, precision) as backend:
            for i in range(trials):
                first = draw.choice(edges)
                extra = draw.sample(edges, min(len(edges), SETS[i % len(SETS)] - 1))
                chosen = {first, *(extra if known.graph == "dense" else ())}
                high = head_of(first.dest) if known.high == "input" else known.fixed_head
                backend.investigate(high)
                asked = high if known.graph == "dense" else "auto"
                ours = patcher.run(prompts, edges=chosen, head=asked)
                with patch_mode(model, outputs, chosen):
                    theirs = model(tokens.to(device))
                yield ours, theirs[:, seen].float().cpu().numpy()
