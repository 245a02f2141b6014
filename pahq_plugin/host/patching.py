"""Patched forwards of the host model, started from cached activations of the clean run.

The host's wrappers leave activations unchanged while every edge is kept, so all layers below the lowest
patched edge hold their clean values. A forward therefore starts at that layer from the cached clean
residual stream, as the host's own ACDC does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from auto_circuit.utils.ablation_activations import src_ablations
from torch import Tensor

from pahq_plugin.host.types import (
    AblationType,
    PatchableModel,
    PromptDataLoader,
    PromptPairBatch,
    patch_mode,
)


@dataclass(frozen=True)
class CleanRun:
    """One batch of prompts and the output of the unpatched model on it.

    Attributes:
        batch: the host's batch; ``clean`` is ``[batch, pos]`` of token ids in a transformer.
        logits: clean output after the model's ``out_slice``, ``[batch, (pos,) vocab]``.
        start_arguments: further arguments of a forward that starts at a block, including the
            padding mask ``attention_mask``, ``[batch, pos]`` or ``None``.
    """

    batch: PromptPairBatch
    logits: Tensor
    start_arguments: dict[str, Tensor | None]


@dataclass(frozen=True)
class PatchBatch(CleanRun):
    """A batch with everything that patched forwards of the host model need.

    Attributes:
        clean: source outputs of the clean run, ``[src, batch, pos, d_model]``.
        ablated: what a patched edge carries instead, same shape.
        residuals: clean residual stream before each block, ``[batch, pos, d_model]`` each; empty
            for models that are not transformers.
    """

    clean: Tensor
    ablated: Tensor
    residuals: list[Tensor]


@torch.inference_mode()
def source_outputs(model: PatchableModel, tokens: Tensor) -> Tensor:
    """Compute every source node's output on prompts ``[batch, pos]``: ``[src, batch, pos, d_model]``."""
    return src_ablations(model, tokens)


def ablated_sources(
    model: PatchableModel,
    loader: PromptDataLoader,
    batches: Sequence[PromptPairBatch],
    ablation: AblationType,
) -> Iterator[Tensor]:
    """Yield the ablated source outputs ``[src, batch, pos, d_model]`` of each batch.

    Means over the data set use the whole loader; every other ablation uses the corrupt prompts of the
    batch, as in the host's ``run_circuits``.
    """
    if ablation.mean_over_dataset:
        mean = src_ablations(model, loader, ablation)
        yield from (mean for _ in batches)
        return
    for batch in batches:
        yield src_ablations(model, batch.corrupt, ablation)


@torch.inference_mode()
def clean_runs(model: PatchableModel, batches: Sequence[PromptPairBatch]) -> list[CleanRun]:
    """Run every batch once unpatched, in the model's own precision."""
    return [
        CleanRun(batch, model(batch.clean)[model.out_slice], _start_arguments(model, batch.clean))
        for batch in batches
    ]


@torch.inference_mode()
def prepare(
    model: PatchableModel,
    loader: PromptDataLoader,
    batches: Sequence[PromptPairBatch],
    ablation: AblationType,
) -> list[PatchBatch]:
    """Run every batch clean and ablated, and keep the output of every source."""
    ablated = ablated_sources(model, loader, batches, ablation)
    return [
        PatchBatch(
            **vars(run),
            clean=source_outputs(model, run.batch.clean),
            ablated=sources,
            residuals=_residuals(model, run.batch.clean),
        )
        for run, sources in zip(clean_runs(model, batches), ablated, strict=True)
    ]


def _residuals(model: PatchableModel, clean: Tensor) -> list[Tensor]:
    """Return the clean residual stream ``[batch, pos, d_model]`` before each block."""
    if not model.is_transformer:
        return []
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(clean, names_filter=names, return_cache_object=False)
    return [cache[name].clone() for name in names]


def _start_arguments(model: PatchableModel, clean: Tensor) -> dict[str, Tensor | None]:
    if not model.is_transformer:
        return {}
    _, *arguments = model.input_to_embed(clean)
    names = ("tokens", "shortformer_pos_embed", "attention_mask")
    return dict(zip(names, arguments, strict=True))


@torch.inference_mode()
def patched_logits(
    model: PatchableModel, prepared: PatchBatch, sources: Tensor, start: int | None
) -> Tensor:
    """Run a batch under the model's current patch masks; return ``[batch, (pos,) vocab]``.

    Args:
        sources: ``[src, batch, pos, d_model]``, overwritten with the source outputs of this run;
            those of blocks below ``start`` must be clean.
        start: the block to start from, or ``None`` for the whole model.
    """
    with patch_mode(model, prepared.ablated, curr_src_outs=sources):
        if start is None:
            logits = model(prepared.batch.clean)
        else:
            logits = model(prepared.residuals[start], start_at_layer=start, **prepared.start_arguments)
    return logits[model.out_slice]
