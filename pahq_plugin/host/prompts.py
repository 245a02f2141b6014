"""Draw, check and hash the prompts of a host loader."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pahq_plugin.errors import PromptError, one_line
from pahq_plugin.host.types import PatchableModel, PromptDataLoader, PromptPairBatch

TOKENS = (torch.int64, torch.int32)


def collect_batches(
    model: PatchableModel, loader: PromptDataLoader, count: int | None
) -> list[PromptPairBatch]:
    """Draw the first ``count`` batches of ``loader`` (``None``: all) and check them against the model.

    Raises:
        PromptError: not a loader, no batch, clean and corrupt prompts of different length, token ids
            outside the vocabulary, prompts longer than the context, or not of the graph's ``seq_len``.
    """
    if not isinstance(loader, PromptDataLoader):
        inside = "its .train_loader" if hasattr(loader, "train_loader") else "a loader of prompt pairs"
        raise PromptError(f"loader is a {type(loader).__name__}, not a PromptDataLoader; pass {inside}")
    most = None if count is None else min(count, sys.maxsize)
    try:
        batches: list[PromptPairBatch] = list(islice(iter(loader), most))
    except RuntimeError as error:  # torch.stack in the host's collate_fn
        raise PromptError(f"prompts of one batch must have one length: {error}") from error
    except (AttributeError, TypeError) as error:
        raise PromptError(
            f"prompts and answers must be tensors, as in the host's PromptDataset: {one_line(error)}"
        ) from error
    if not batches:
        raise PromptError(
            f"the loader is empty: {len(loader.dataset)} prompts with a batch size of "  # type: ignore[arg-type]
            f"{loader.batch_size} make less than a full batch"
        )
    if loader.kv_cache is not None:
        _check_prefix(model, loader.kv_cache)
    if count is not None and len(batches) < count:
        raise PromptError(f"batches={count}, but the loader holds {len(batches)}")
    for batch in batches:
        _check_batch(model, batch)
    return batches


def _check_prefix(model: PatchableModel, cache: Any) -> None:
    """Check that the model holds the KV cache of the loader's common prefix."""
    own = (model.kv_caches or {}).get(len(cache.previous_attention_mask))
    if own is None:
        raise PromptError(
            "the loader's prompts continue a common prefix whose KV cache the model lacks; make the "
            "model patchable with kv_caches=(loader.kv_cache,)"
        )
    if own is not cache and not _same_prefix(own, cache):
        raise PromptError(
            "the model's KV cache does not hold the common prefix of the loader's prompts; make the "
            "model patchable with kv_caches=(loader.kv_cache,)"
        )


def _same_prefix(own: Any, given: Any) -> bool:
    """Return whether two KV caches hold the same prefix; the model's may be repeated for each head."""
    mask = given.previous_attention_mask.to(own.previous_attention_mask.device)
    if len(own.entries) != len(given.entries) or not torch.equal(own.previous_attention_mask, mask):
        return False
    return all(
        _same_heads(mine, theirs)
        for entries in zip(own.entries, given.entries, strict=True)
        for mine, theirs in zip(*((e.past_keys, e.past_values) for e in entries), strict=True)
    )


def _same_heads(mine: Tensor, theirs: Tensor) -> bool:
    """Return whether keys or values ``[batch, pos, head, d_head]`` are equal up to repeated heads."""
    times, rest = divmod(mine.shape[2], theirs.shape[2])
    return not rest and torch.equal(mine, theirs.to(mine.device).repeat_interleave(times, dim=2))


def past_length(model: PatchableModel) -> int:
    """Return the length of the common prefix in the model's KV caches; 0 without caches."""
    caches = list((model.kv_caches or {}).values())
    return caches[0][0].past_keys.shape[1] if caches else 0


def check_one_shape(batches: Iterable[PromptPairBatch]) -> None:
    """Check that all batches have one size and one length, as a mean per position needs."""
    shapes = [batch.clean.shape[:2] for batch in batches]
    sizes, lengths = (sorted(set(axis)) for axis in zip(*shapes, strict=True))
    if len(lengths) > 1:
        raise PromptError(
            f"the loader's batches have {', '.join(map(str, lengths))} tokens; a mean over the data "
            "set needs one length; use another ablation, such as resample"
        )
    if len(sizes) > 1:
        raise PromptError(
            f"the loader's batches have {', '.join(map(str, sizes))} prompts; a mean over the data "
            "set needs one size; use another ablation, such as resample"
        )


def _check_tokens(name: str, tokens: object) -> None:
    is_tensor = isinstance(tokens, Tensor)
    if not is_tensor or tokens.dtype not in TOKENS or tokens.ndim != 2 or tokens.numel() == 0:
        found = f"{tokens.dtype} of shape {list(tokens.shape)}" if is_tensor else type(tokens).__name__
        raise PromptError(f"{name} prompts are {found}; expected token ids [prompt, pos] of int64")


def _check_batch(model: PatchableModel, batch: PromptPairBatch) -> None:
    if not (hasattr(batch, "clean") and hasattr(batch, "corrupt")):
        raise PromptError(
            f"the loader yields a {type(batch).__name__}; expected a PromptPairBatch of the host"
        )
    clean, corrupt = batch.clean, batch.corrupt
    if model.is_transformer:
        _check_tokens("clean", clean)
        _check_tokens("corrupt", corrupt)
    if clean.shape != corrupt.shape:
        raise PromptError(
            f"clean and corrupt prompts differ in length: {clean.shape[1]} and {corrupt.shape[1]} "
            "tokens; both prompts of a pair need the same number"
        )
    if model.seq_len is not None and clean.shape[model.seq_dim] != model.seq_len:
        raise PromptError(
            f"the graph has edges for seq_len={model.seq_len} positions, but the prompts have "
            f"{clean.shape[model.seq_dim]}"
        )
    if not model.is_transformer:
        return
    vocabulary, context = model.cfg.d_vocab, model.cfg.n_ctx
    highest = int(max(clean.max(), corrupt.max()))
    lowest = int(min(clean.min(), corrupt.min()))
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise PromptError(f"token id {wrong} is outside the vocabulary of {vocabulary}")
    if model.kv_caches is not None and len(clean) not in model.kv_caches:
        known = ", ".join(str(size) for size in sorted(model.kv_caches))
        raise PromptError(f"batch size {len(clean)} has no KV cache; there are caches for {known}")
    past = past_length(model)
    if past + clean.shape[1] > context:
        after = f" after a prefix of {past}" if past else ""
        raise PromptError(f"prompts of {clean.shape[1]} tokens{after} exceed the context of {context}")


def prompts_digest(batches: Sequence[PromptPairBatch]) -> str:
    """Hash the clean and corrupt prompts and the answers."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for values in (batch.clean, batch.corrupt, batch.answers, batch.wrong_answers):
            for tensor in values if isinstance(values, list) else [values]:
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def loader_of(batches: Sequence[PromptPairBatch], loader: PromptDataLoader) -> PromptDataLoader:
    """Make a loader that yields exactly these batches of ``loader``.

    Host algorithms read a loader several times, and ``loader`` itself may draw other batches each time.
    """
    made = PromptDataLoader(
        list(batches),
        seq_len=loader.seq_len,
        diverge_idx=loader.diverge_idx,
        kv_cache=loader.kv_cache,
        seq_labels=loader.seq_labels,
        word_idxs=loader.word_idxs,
        batch_size=1,
        shuffle=False,
    )
    made.collate_fn = itemgetter(0)
    return made
