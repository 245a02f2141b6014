"""Run circuits on held-out prompts, with the host's forward pass.

A circuit is run by patching every edge outside it, as in the host's ``run_circuits`` with tree
patching, and its complement by patching every edge inside it. A run yields one number per prompt and
measure, so that averages and their spread can be computed later without a model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_plugin.errors import MetricError
from pahq_plugin.host import (
    AblationType,
    Edge,
    PatchableModel,
    PromptDataLoader,
    PromptPairBatch,
    patch_mode,
)
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.patching import PatchBatch, prepare
from pahq_plugin.host.prompts import check_one_shape, collect_batches
from pahq_plugin.metrics import Metric, check_answers, logit_diff, per_prompt

MEASURES = ("loss", "logit_diff", "correct")
"""Per prompt: the loss; the logit difference, right minus wrong; the share of output positions whose
largest logit is that of a right answer."""


@dataclass(frozen=True)
class Judge:
    """A borrowed model on held-out prompts.

    Attributes:
        model: the host model; its patch masks are overwritten.
        prepared: batches with clean and ablated source outputs.
        metric: the loss.
        answered: whether right and wrong answers are token ids, so that all `MEASURES` exist.
    """

    model: PatchableModel
    prepared: Sequence[PatchBatch]
    metric: Metric
    answered: bool

    def whole(self) -> list[list[float]]:
        """`run` with no edge patched: every edge is in the circuit."""
        return self.run(self.model.edges)

    def empty(self) -> list[list[float]]:
        """`run` with every edge patched."""
        return self.run(())

    @torch.inference_mode()
    def run(self, circuit: Collection[Edge]) -> list[list[float]]:
        """Run the prompts with all edges outside ``circuit`` patched.

        Returns ``[prompt, measure]`` in the order of `MEASURES`; only the loss if not ``answered``.
        """
        masks = {w.module_name: torch.ones_like(w.patch_mask.data) for w in self.model.dest_wrappers}
        for edge in circuit:
            masks[edge.dest.module_name][edge.patch_idx] = 0.0
        for wrapper in self.model.dest_wrappers:
            wrapper.patch_mask.data = masks[wrapper.module_name]
        rows: list[list[float]] = []
        for batch in self.prepared:
            with patch_mode(self.model, batch.ablated):
                logits = self.model(batch.batch.clean)[self.model.out_slice]
            rows += self._measured(logits, batch).tolist()
        return rows

    def _measured(self, logits: Tensor, batch: PatchBatch) -> Tensor:
        """Return the measures of a batch, ``[prompt, measure]``, FP64."""
        columns = [self.metric(logits, batch.logits, batch.batch)]
        if self.answered:
            columns += [-logit_diff(logits, batch.logits, batch.batch), correct(logits, batch.batch)]
        return torch.stack([column.double() for column in columns], dim=1)


@contextmanager
def judging(
    model: PatchableModel, loader: PromptDataLoader, ablation: AblationType, metric: Metric
) -> Iterator[Judge]:
    """Borrow a factorized model to run its circuits on all batches of ``loader``.

    Raises:
        PromptError: prompts do not fit the model.
    """
    batches = collect_batches(model, loader, None)
    if ablation.mean_over_dataset:
        check_one_shape(batches)
    with borrowed(model):
        prepared = prepare(model, loader, batches, ablation)
        yield Judge(model, prepared, metric, has_answers(batches, prepared[0].logits.shape[-1]))


def has_answers(batches: Sequence[PromptPairBatch], vocabulary: int) -> bool:
    """Return whether right and wrong answers are token ids of the output vocabulary."""
    try:
        check_answers(batches, vocabulary)
    except MetricError:
        return False
    return True


def correct(logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Return the share of output positions whose largest logit is a right answer's, ``[prompt]``.

    Args:
        logits: ``[prompt, (pos,) vocab]``.
        batch: answers as token ids, ``[prompt, answer]``, ``[prompt, pos, answer]``, or a list of
            ``[answer]``.
    """
    best = logits.argmax(dim=-1)
    if isinstance(batch.answers, list):
        pairs = zip(best, batch.answers, strict=True)
        return torch.stack([torch.isin(own, ids).double().mean() for own, ids in pairs])
    answers = batch.answers
    if best.ndim > 1 and answers.ndim == 2:
        answers = answers[:, None]
    return per_prompt((best[..., None] == answers).any(dim=-1).double())
