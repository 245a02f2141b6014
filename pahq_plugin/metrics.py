"""Losses over logits: how far a patched output is from the clean behaviour.

A metric maps ``(logits, clean_logits, batch)`` to one loss per prompt, larger = further away.
Logits are ``[prompt, vocab]`` or ``[prompt, pos, vocab]``, cut to the model's ``out_slice``; losses
are averaged over the output positions of a prompt. The effect of an edge is the mean loss after
patching it minus the mean loss before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pahq_plugin.errors import MetricError, PahqError, one_line
from pahq_plugin.host import PromptPairBatch
from pahq_plugin.system.memory import is_out_of_memory
from pahq_plugin.system.plugins import is_reference, referred

Metric = Callable[[Tensor, Tensor, PromptPairBatch], Tensor]


def kl_div(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """KL(clean || patched) of the next-token distributions, in nats, ``[prompt]``, FP64.

    Near the clean output the divergence is a small difference of large sums: FP32 would lose it in
    rounding of about 1e-6, and effects below that with it.
    """
    return per_prompt(_divergence(logits, clean_logits))


def _divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL of each distribution, FP64; the clean logits may be broadcast over leading axes."""
    clean = log_softmax(clean_logits.double(), dim=-1)
    return (clean.exp() * (clean - log_softmax(logits.double(), dim=-1))).sum(dim=-1)


def mse(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Mean squared difference to the clean logits, ``[prompt]``."""
    return per_prompt((logits - clean_logits).square())


def logit_diff(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Minus (mean logit of the right answers - mean logit of the wrong ones), ``[prompt]``.

    Answers are token ids, ``[prompt, answer]`` for all positions alike, ``[prompt, pos, answer]``,
    or a list of ``[answer]`` where prompts differ in their number.
    """
    try:
        right, wrong = (_mean_logit(logits, ids) for ids in (batch.answers, batch.wrong_answers))
    except (RuntimeError, IndexError, ValueError) as error:
        raise MetricError(
            f"logit_diff needs answers and wrong_answers that are token ids within logits of shape "
            f"{list(logits.shape)}: {str(error).splitlines()[0]}"
        ) from error
    return per_prompt(wrong - right)


def _mean_logit(logits: Tensor, answers: Tensor | list[Tensor]) -> Tensor:
    """Mean logit of the answers, ``[prompt, (pos)]``."""
    if isinstance(answers, list):
        pairs = zip(logits, answers, strict=True)
        return torch.stack([own.index_select(-1, ids).mean(dim=-1) for own, ids in pairs])
    if answers.ndim < logits.ndim:
        answers = answers[:, None].expand(-1, logits.shape[1], -1)
    if answers.shape[:-1] != logits.shape[:-1]:  # gather would take the first positions without a word
        raise MetricError(f"answers of shape {list(answers.shape)} are not for each position")
    return logits.gather(-1, answers).mean(dim=-1)


def check_answers(batches: Sequence[PromptPairBatch], vocabulary: int) -> None:
    """
    Raises:
        MetricError: right or wrong answers that are no token ids of the output vocabulary, or none.
    """
    for batch in batches:
        for name in ("answers", "wrong_answers"):
            answers = getattr(batch, name)
            if isinstance(answers, list) and len(answers) != len(batch.clean):
                raise MetricError(
                    f"{name} for {len(batch.clean)} prompts: {len(answers)}; give each prompt its own"
                )
            for ids in answers if isinstance(answers, list) else [answers]:
                if not _are_tokens(ids, vocabulary):
                    raise MetricError(
                        f"{name} must be token ids from 0 to {vocabulary - 1} for a method that "
                        "differentiates their logits; use a method that searches, such as acdc"
                    )


def _are_tokens(ids: Tensor, vocabulary: int) -> bool:
    """Whether there is one at least, and all are of the vocabulary."""
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim == 0 or ids.numel() == 0:
        return False
    return not bool(((ids < 0) | (ids >= vocabulary)).any())


METRICS: dict[str, Metric] = {"kl_div": kl_div, "mse": mse, "logit_diff": logit_diff}


def per_prompt(x: Tensor) -> Tensor:
    """Mean over every axis but the first: ``[prompt, ...]`` to ``[prompt]``."""
    return x.flatten(start_dim=1).mean(dim=1) if x.ndim > 1 else x


def resolve_metric(metric: str | Metric | None, n_outputs: int) -> tuple[str, Metric]:
    """Name and function of a metric.

    Args:
        metric: a name, a callable, ``"module:attribute"`` where one is, or ``None`` for ``"kl_div"``
            (``"mse"`` where the model has a single output, whose KL divergence is always 0).
        n_outputs: width of the logits.

    Raises:
        MetricError: an unknown name (the message lists the known ones), or ``"kl_div"`` of a single
            output.
    """
    if metric is None:
        metric = "kl_div" if n_outputs > 1 else "mse"
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if is_reference(metric):
        return metric, _callable(metric)
    if not isinstance(metric, str) or metric not in METRICS:
        raise MetricError(
            f"unknown metric {metric!r}; known: {', '.join(METRICS)}; one of your own goes to "
            "pahq_plugin.discover, as a function"
        )
    if metric == "kl_div" and n_outputs < 2:
        raise MetricError('kl_div is always 0 for a model with one output; use metric="mse"')
    return metric, METRICS[metric]


def _callable(name: str) -> Metric:
    """The function that a name of the form ``"module:attribute"`` stands for."""
    found = referred(name, object)
    if not callable(found):
        raise MetricError(f"{name!r} is a {type(found).__name__}; expected a function")
    return found  # type: ignore[return-value]


DEFAULT_METRIC: tuple[str, Metric] = ("kl_div", kl_div)
"""Of a model with several outputs."""

MISFITS = (TypeError, AttributeError, LookupError, ValueError, RuntimeError)
"""What Python and PyTorch raise where a function does not fit its arguments."""


def row_losses(
    name: str, metric: Metric, logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch
) -> Tensor:
    """Loss of each row, averaged over the prompts in FP64, ``[candidate]``.

    Args:
        name: the metric's name, for errors.
        metric: the metric.
        logits: ``[candidate, prompt, (pos,) vocab]``.
        clean_logits: ``[prompt, (pos,) vocab]``.
        batch: the host's batch.

    Raises:
        MetricError: the metric failed, or returned another shape than ``[prompt]``, NaN or infinity.
    """
    if metric is kl_div:
        losses = _divergence(logits, clean_logits).flatten(start_dim=1).mean(dim=1)
    elif metric is mse:
        losses = (logits - clean_logits).square().double().flatten(start_dim=1).mean(dim=1)
    else:
        # Each row's mean before the next call: a metric may return the same buffer every time, or a
        # view that keeps the row's copy of the logits.
        losses = torch.stack(
            [
                _mean_over_prompts(name, _called(name, metric, row, clean_logits, batch), row)
                for row in logits
            ]
        )
    return check_finite(name, losses)


def check_finite(name: str, losses: Tensor) -> Tensor:
    """``losses`` themselves.

    Raises:
        MetricError: one of them is NaN or infinite; names the metric.
    """
    if not bool(losses.isfinite().all()):
        bad = losses[~losses.isfinite()][0]
        raise MetricError(f"metric {name!r} returned {float(bad)}; losses must be finite")
    return losses


def _called(
    name: str, metric: Metric, logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch
) -> Tensor:
    """What a metric returns; it gets copies, since it may write into what it is given.

    Raises:
        MetricError: one of `MISFITS`; what else a metric raises is its own and passes.
    """
    try:
        return metric(logits.clone(), clean_logits.clone(), batch)
    except PahqError:
        raise
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        raise MetricError(
            f"metric {name!r} failed with {type(error).__name__}: {one_line(error)}; it is called with "
            f"(logits, clean_logits, batch), the logits {list(logits.shape)}"
        ) from error


def _mean_over_prompts(name: str, losses: object, logits: Tensor) -> Tensor:
    expected = [len(logits)]
    if not isinstance(losses, Tensor) or list(losses.shape) != expected:
        got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise MetricError(f"metric {name!r} must return one loss per prompt, {expected}, not {got}")
    return losses.double().mean()
