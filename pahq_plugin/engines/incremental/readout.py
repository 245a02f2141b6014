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
from pahq_plugin.metrics import Metric, check_finite, kl_div, mse, row_losses
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

    @torch.enable_grad()
    def derivatives(self, final: Tensor, probes: Tensor | None = None) -> Tensor:
        """Compute gradients of the mean loss, and probes of its curvature, ``[line, batch, pos,
        d_model]``.

        A probe is a random vector v whose mean of v v^T is the Gauss-Newton matrix of the mean loss: the
        loss's second derivative along changes d and d' of the stream is the mean of (v . d) (v . d').

        Args:
            final: last residual streams, ``[point, batch, pos, d_model]``; one gradient each.
            probes: standard normal numbers, ``[probe, batch, (pos,) vocab]``; one probe each, at the
                first point. Only metrics that are `curved` have probes.

        Raises:
            RuntimeError: the metric cannot be differentiated.
        """
        final = final.clone().requires_grad_()
        logits = self._logits(final)
        if self._metric[1] is kl_div:
            z = logits.double()
            losses = z.logsumexp(dim=-1) - torch.linalg.vecdot(z, self._p)
            loss = losses.flatten(start_dim=1).mean(dim=1).sum()
        else:
            loss = row_losses(*self._metric, logits, self._clean, self._batch).sum()
        lines = torch.autograd.grad(loss, final, retain_graph=probes is not None)[0]
        if probes is None:
            return lines
        vectors = self._curvature(logits[0].detach(), probes)
        each = (torch.autograd.grad(logits[0], final, v, retain_graph=True)[0] for v in vectors)
        return torch.cat([lines, *(found[:1] for found in each)])

    @property
    def curved(self) -> bool:
        """Whether the loss's second derivative with respect to the logits is known and not 0."""
        return self._metric[1] in (kl_div, mse)

    def normals(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the numbers that ``count`` probes need, see `derivatives`."""
        like = self._p if self._metric[1] is kl_div else self._clean
        return torch.randn((count, *like.shape), generator=generator).to(like)

    def _curvature(self, logits: Tensor, normals: Tensor) -> Tensor:
        """Compute probes at ``logits [batch, (pos,) vocab]``, in the shape of ``normals``."""
        if self._metric[1] is mse:
            return (normals * (2 / logits.numel()) ** 0.5).to(logits)
        q = logits.double().softmax(dim=-1)
        own = q.sqrt() * normals
        own -= q * own.sum(dim=-1, keepdim=True)
        return (own / q[..., 0].numel() ** 0.5).to(logits)

    def _divergences(self, final: Tensor, unembedding: Unembedding | None) -> Tensor:
        """Compute the mean KL divergence from the clean distributions, ``[candidate]``."""
        distributions = final[..., 0].numel()
        words = self._work_bytes // (2 * 8 * distributions) // LEAST_WORDS * LEAST_WORDS
        words = max(LEAST_WORDS, words)
        mean: Tensor | None = None
        normaliser: Tensor | None = None
        for first in range(0, self._p.shape[-1], words):
            part = slice(first, first + words)
            logits = self._logits(final, part, unembedding).double()
            p = self._p if words >= self._p.shape[-1] else self._p[..., part]
            product, own = torch.linalg.vecdot(logits, p), logits.logsumexp(dim=-1)
            mean = product if mean is None else mean + product
            normaliser = own if normaliser is None else torch.logaddexp(normaliser, own)
        assert mean is not None and normaliser is not None  # a model with a vocabulary
        return (self._negentropy - mean + normaliser).flatten(start_dim=1).mean(dim=1)

    def _logits(
        self, final: Tensor, words: slice | None = None, unembedding: Unembedding | None = None
    ) -> Tensor:
        """Compute logits ``[candidate, batch, (pos,) vocab]``, or those of some words; an ``out_slice``
        of one position drops that axis."""
        logits = unembed(self._model, final, words, unembedding)
        return logits[:, :, 0] if self._drops_position else logits
