"""Source outputs of the present state and of the ablated run, stored factorised.

An attention head adds ``z W_O`` to the residual stream. Its value mix z has width d_head, its output
d_model, so z is stored, and projected when it is read. All ablations are linear in the source outputs
(a copy, zero, or a mean), so the ablated side is stored as z, too.

At the shape of GPT-2 XL with 32 x 16 tokens this takes 0.6 GiB; the host keeps 7.6 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_plugin.engines.placement.place import InPlace, Placement, Tensors
from pahq_plugin.host import AblationType, PatchableModel, PromptDataLoader, PromptPairBatch
from pahq_plugin.models.blocks import AttentionMath, embed, normalise


@dataclass
class Sources:
    """Outputs of all sources for one batch.

    Attributes:
        embedding: the input of block 0, ``[batch, pos, d_model]``.
        z: value mixes by layer, ``[head, batch, pos, d_head]``.
        mlp: MLP outputs by layer, ``[batch, pos, d_model]``; empty for attention-only models.
    """

    embedding: Tensor
    z: MutableSequence[Tensor]
    mlp: MutableSequence[Tensor]

    def map(self, function: Callable[[Tensor, int], Tensor], tensors: Tensors = list) -> Sources:
        """Apply ``function(tensor, batch_axis)`` to every tensor; ``tensors`` holds the results."""
        return Sources(
            function(self.embedding, 0),
            tensors(function(z, 1) for z in self.z),
            tensors(function(mlp, 0) for mlp in self.mlp),
        )

    def plus(self, other: Sources, tensors: Tensors = list) -> Sources:
        """Add two `Sources`, tensor by tensor; ``tensors`` holds the results."""
        return Sources(
            self.embedding + other.embedding,
            tensors(a + b for a, b in zip(self.z, other.z, strict=True)),
            tensors(a + b for a, b in zip(self.mlp, other.mlp, strict=True)),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the stored outputs."""
        return self.embedding.nbytes + nbytes_of(self.z) + nbytes_of(self.mlp)


def nbytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of cached tensors, without bringing them into memory."""
    own = getattr(tensors, "nbytes", None)
    return sum(x.nbytes for x in tensors) if own is None else own


@dataclass(frozen=True)
class PlainRun:
    """A run of the unpatched model.

    Attributes:
        sources: the output of every source.
        final: the last residual stream, ``[batch, pos, d_model]``.
        padding: 1 for tokens, 0 for padding, ``[batch, offset_pos]``; ``None`` without padding.
    """

    sources: Sources
    final: Tensor
    padding: Tensor | None


@torch.inference_mode()
def run_plain(
    model: PatchableModel, tokens: Tensor, dtype: torch.dtype, placement: Placement | None = None
) -> PlainRun:
    """Run the model on ``tokens``, ``[batch, pos]``; store source outputs in ``dtype``, where
    ``placement`` keeps them.

    The host's own forward gives the same, but with split inputs it multiplies every head's input
    element by element and takes about forty times as long.
    """
    placement = placement or InPlace(model)
    residual, padding = embed(model, tokens)
    sources = Sources(residual.to(dtype, copy=True), placement.tensors(()), placement.tensors(()))
    parallel, heads = model.cfg.parallel_attn_mlp, list(range(model.cfg.n_heads))
    for layer, block in enumerate(placement.blocks):
        before, attn = residual, block.attn
        math = AttentionMath(model, layer, residual, padding)
        z = _value_mix(math, residual, heads)
        residual = residual + torch.einsum("hbpd,hdm->bpm", z, attn.W_O) + attn.b_O
        sources.z.append(z.to(dtype))
        if not model.cfg.attn_only:
            mlp = block.mlp(normalise(block.ln2, before if parallel else residual))
            residual = residual + mlp
            sources.mlp.append(mlp.to(dtype))
    return PlainRun(sources, residual, padding)


def run_sources(
    model: PatchableModel, tokens: Tensor, dtype: torch.dtype, placement: Placement | None = None
) -> Sources:
    """Return the source outputs of `run_plain`."""
    return run_plain(model, tokens, dtype, placement).sources


def projections(math: AttentionMath, residual: Tensor) -> dict[str, Tensor]:
    """Compute queries, keys and values by letter, not yet rotated, ``[head, batch, pos, d_head]``."""
    normal = normalise(math.norm, residual)
    return {
        letter: torch.einsum("bpm,hmd->hbpd", normal, math.weight_of(letter))
        + math.bias_of(letter)[:, None, None]
        for letter in "qkv"
    }


def _value_mix(math: AttentionMath, residual: Tensor, heads: list[int]) -> Tensor:
    """Compute z of every head, ``[head, batch, pos, d_head]``."""
    where = torch.arange(residual.shape[1]).to(residual.device)
    q, k, v = (
        math.rotate(y[:, None], letter, where) for letter, y in projections(math, residual).items()
    )
    return math.mix(q, k, v, heads, where)[:, 0]


@torch.inference_mode()
def ablated_runs(
    model: PatchableModel,
    loader: PromptDataLoader,
    batches: Sequence[PromptPairBatch],
    ablation: AblationType,
    dtype: torch.dtype,
    placement: Placement | None = None,
) -> list[Sources]:
    """Compute what patched edges carry, for each batch; supports every ablation type of the host."""
    placement = placement or InPlace(model)
    if ablation.mean_over_dataset:
        mean = _dataset_mean(model, loader, ablation, dtype, placement)
        return [mean] * len(batches)
    runs = (run_sources(model, batch.corrupt, dtype, placement) for batch in batches)
    if ablation is AblationType.RESAMPLE:
        return list(runs)
    return [run.map(_BATCH_ABLATIONS[ablation], placement.tensors) for run in runs]


def _mean_over_prompts(x: Tensor, batch_axis: int) -> Tensor:
    return x.mean(dim=batch_axis, keepdim=True).expand_as(x).contiguous()


def _mean_over_tokens(x: Tensor, batch_axis: int) -> Tensor:
    return x.mean(dim=(batch_axis, batch_axis + 1), keepdim=True).expand_as(x).contiguous()


_BATCH_ABLATIONS: dict[AblationType, Callable[[Tensor, int], Tensor]] = {
    AblationType.ZERO: lambda x, _: torch.zeros_like(x),
    AblationType.BATCH_TOKENWISE_MEAN: _mean_over_prompts,
    AblationType.BATCH_ALL_TOK_MEAN: _mean_over_tokens,
}


def _dataset_mean(
    model: PatchableModel,
    loader: PromptDataLoader,
    ablation: AblationType,
    dtype: torch.dtype,
    placement: Placement,
) -> Sources:
    """Average at each token position over the clean and/or corrupt prompts of the whole loader."""
    total: Sources | None = None
    runs = 0
    for batch in loader:
        chosen = [batch.clean] * ablation.clean_dataset + [batch.corrupt] * ablation.corrupt_dataset
        for tokens in chosen:
            run = run_sources(model, tokens, dtype, placement)
            mean = run.map(_mean_over_prompts, placement.tensors)
            total = mean if total is None else total.plus(mean, placement.tensors)
            runs += 1
    assert total is not None  # collect_batches has refused an empty loader
    return total.map(lambda x, _: x / runs, placement.tensors)
