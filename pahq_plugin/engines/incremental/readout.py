"""From final residual streams to losses: the unembedding and the metric, without wide temporaries.

The logits of all rows of a pass would be the widest tensors of a search. For the KL divergence they
never exist as a whole: with p the clean distribution and z a row's logits,

    KL(p || softmax(z)) = sum p log p - sum p z + logsumexp(z)

is summed over parts of the vocabulary. Each part is unembedded for all rows at once, so that the
unembedding weight is read once per pass. Sums are in FP64, see `pahq_plugin.metrics.kl_div`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.metrics import Metric, check_finite, kl_div, row_losses
from pahq_plugin.models.blocks import Unembedding, output_positions, unembed

LEAST_WORDS = 256
"""The size of a part of the vocabulary is a multiple of this; kernels need multiples of 16."""


class Readout:
    """Losses of the prompts of one batch.

    Args:
        model: the host model.
        batch: its prompts.
        final: the clean run's last residual stream at the output's positions, ``[batch, pos,
            d_model]``.
        metric: name and function.
        work_bytes: approximate limit on the bytes of temporaries.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PatchableModel,
        batch: PromptPairBatch,
        final: Tensor,
        metric: tuple[str, Metric],
        work_bytes: int,
    ) -> None:
        self._model, self._batch, self._metric = model, batch, metric
        self._work_bytes = work_bytes
        self._drops_position = output_positions(model, batch.clean.shape[1])[1]
        clean = self._logits(final[None])[0]
        if metric[1] is kl_div:
            log_p = clean.double().log_softmax(dim=-1)
            self._p = log_p.exp()
            self._negentropy = (self._p * log_p).sum(dim=-1)  # [batch, (pos)]
        else:
            self._clean = clean
        self.clean_loss = float(self.losses(final[None]))

    def losses(self, final: Tensor, unembedding: Unembedding | None = None) -> Tensor:
        """Compute the loss of each row, averaged over the prompts, FP64 ``[candidate]``.

        Args:
            final: last residual streams, ``[candidate, batch, pos, d_model]``.
            unembedding: used instead of the model's own.

        Raises:
            MetricError: a loss is not finite, or the metric returns the wrong shape.
        """
        if self._metric[1] is kl_div:
            return check_finite(self._metric[0], self._divergences(final, unembedding))
        rows = max(1, self._work_bytes // (2 * self._clean.nbytes))
        parts = (self._logits(part, None, unembedding) for part in final.split(rows))
        losses = [row_losses(*self._metric, logits, self._clean, self._batch) for logits in parts]
        return torch.cat(losses)

    def _divergences(self, final: Tensor, unembedding: Unembedding | None) -> Tensor:
        """Compute the mean KL divergence from the clean distributions, ``[candidate]``."""
        distributions = final[..., 0].numel()
        words = self._work_bytes // (2 * 8 * distributions) // LEAST_WORDS * LEAST_WORDS
        words = max(LEAST_WORDS, words)
        mean, normaliser = final.new_zeros(()).double(), None
        for first in range(0, self._p.shape[-1], words):
            part = slice(first, first + words)
            logits = self._logits(final, part, unembedding).double()
            mean = mean + torch.linalg.vecdot(logits, self._p[..., part])
            own = logits.logsumexp(dim=-1)
            normaliser = own if normaliser is None else torch.logaddexp(normaliser, own)
        assert normaliser is not None  # a model with a vocabulary
        return (self._negentropy - mean + normaliser).flatten(start_dim=1).mean(dim=1)

    def _logits(
        self, final: Tensor, words: slice | None = None, unembedding: Unembedding | None = None
    ) -> Tensor:
        """Compute logits ``[candidate, batch, (pos,) vocab]``, or those of some words; an ``out_slice``
        of one position drops that axis."""
        logits = unembed(self._model, final, words, unembedding)
        return logits[:, :, 0] if self._drops_position else logits
