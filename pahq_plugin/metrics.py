"""Losses over logits: how far a patched output is from the clean behaviour.

A metric maps ``(logits, clean_logits, batch)`` to one loss per prompt; larger means further away.
Logits are ``[prompt, vocab]`` or ``[prompt, pos, vocab]``, cut to the model's ``out_slice``; losses
are averaged over the output positions of a prompt. The effect of an edge is the mean loss after
patching it minus the mean loss before.
"""

from __future__ import annotations

import math
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
    """Compute KL(clean || patched) of the next-token distributions, in nats, ``[prompt]``, FP64.

    Near the clean output the divergence is a small difference of large sums: FP32 rounding of about
    1e-6 would hide smaller effects.
    """
    return per_prompt(_divergence(logits, clean_logits))


def _divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Compute the KL divergence over the last axis, FP64; clean logits broadcast over leading axes."""
    clean = log_softmax(clean_logits.double(), dim=-1)
    return (clean.exp() * (clean - log_softmax(logits.double(), dim=-1))).sum(dim=-1)


def mse(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Compute the mean squared difference from the clean logits, ``[prompt]``."""
    return per_prompt((logits - clean_logits).square())


def logit_diff(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Compute minus the logit difference (mean right minus mean wrong answer), ``[prompt]``.

    Answers are token ids: ``[prompt, answer]`` for all positions, ``[prompt, pos, answer]``, or a list
    of ``[answer]`` if prompts have different numbers of answers.
    """
    try:
        right, wrong = (_mean_logit(logits, ids) for ids in (batch.answers, batch.wrong_answers))
    except (RuntimeError, IndexError, ValueError) as error:
        raise MetricError(
            f"logit_diff needs answers and wrong_answers to be token ids within logits of shape "
            f"{list(logits.shape)}: {str(error).splitlines()[0]}"
        ) from error
    return per_prompt(wrong - right)


def _mean_logit(logits: Tensor, answers: Tensor | list[Tensor]) -> Tensor:
    """Compute the mean logit of the answers, ``[prompt, (pos)]``."""
    if isinstance(answers, list):
        pairs = zip(logits, answers, strict=True)
        return torch.stack([own.index_select(-1, ids).mean(dim=-1) for own, ids in pairs])
    if answers.ndim < logits.ndim:
        answers = answers[:, None].expand(-1, logits.shape[1], -1)
    if answers.shape[:-1] != logits.shape[:-1]:  # gather would silently take the first positions
        raise MetricError(f"answers of shape {list(answers.shape)} do not fit the logits' positions")
    return logits.gather(-1, answers).mean(dim=-1)


def check_answers(batches: Sequence[PromptPairBatch], vocabulary: int) -> None:
    """Check that right and wrong answers are token ids of the output vocabulary.

    Raises:
        MetricError: an answer is not such an id, or a prompt has no answers.
    """
    for batch in batches:
        for name in ("answers", "wrong_answers"):
            answers = getattr(batch, name)
            if isinstance(answers, list) and len(answers) != len(batch.clean):
                raise MetricError(
                    f"{name} for {len(batch.clean)} prompts hold {len(answers)} entries; give each "
                    "prompt its own"
                )
            for ids in answers if isinstance(answers, list) else [answers]:
                if not _are_tokens(ids, vocabulary):
                    raise MetricError(
                        f"{name} must be token ids from 0 to {vocabulary - 1} for a method that "
                        "differentiates their logits; use a search method such as acdc"
                    )


def _are_tokens(ids: Tensor, vocabulary: int) -> bool:
    """Return whether ``ids`` is a non-empty integer tensor of ids within the vocabulary."""
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim == 0 or ids.numel() == 0:
        return False
    return not bool(((ids < 0) | (ids >= vocabulary)).any())


METRICS: dict[str, Metric] = {"kl_div": kl_div, "mse": mse, "logit_diff": logit_diff}


def per_prompt(x: Tensor) -> Tensor:
    """Average over every axis but the first: ``[prompt, ...]`` to ``[prompt]``."""
    return x.flatten(start_dim=1).mean(dim=1) if x.ndim > 1 else x


def resolve_metric(metric: str | Metric | None, n_outputs: int) -> tuple[str, Metric]:
    """Return the name and function of a metric.

    Args:
        metric: a name, a callable, ``"module:attribute"`` of a callable, or ``None`` for ``"kl_div"``
            (``"mse"`` if the model has a single output, whose KL divergence is always 0).
        n_outputs: width of the logits.

    Raises:
        MetricError: the name is unknown (the message lists the known ones), or ``"kl_div"`` is asked
            for with a single output.
    """
    if metric is None:
        metric = "kl_div" if n_outputs > 1 else "mse"
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if is_reference(metric):
        return metric, _callable(metric)
    if not isinstance(metric, str) or metric not in METRICS:
        raise MetricError(
            f"unknown metric {metric!r}; known: {', '.join(METRICS)}; pass your own metric to "
            "pahq_plugin.discover as a function"
        )
    if metric == "kl_div" and n_outputs < 2:
        raise MetricError('kl_div is always 0 for a model with one output; use metric="mse"')
    return metric, METRICS[metric]


def _callable(name: str) -> Metric:
    """Import the function named ``"module:attribute"``."""
    found = referred(name, object)
    if not callable(found):
        raise MetricError(f"{name!r} is a {type(found).__name__}; expected a function")
    return found  # type: ignore[return-value]


DEFAULT_METRIC: tuple[str, Metric] = ("kl_div", kl_div)
"""Name and function of the default metric for models with several outputs."""

MISFITS = (TypeError, AttributeError, LookupError, ValueError, RuntimeError)
"""What Python and PyTorch raise if a function does not fit its arguments."""


def row_losses(
    name: str, metric: Metric, logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch
) -> Tensor:
    """Compute each candidate's loss, averaged over the prompts in FP64, ``[candidate]``.

    Args:
        name: the metric's name, for error messages.
        metric: the metric.
        logits: ``[candidate, prompt, (pos,) vocab]``.
        clean_logits: ``[prompt, (pos,) vocab]``.
        batch: the host's batch.

    Raises:
        MetricError: the metric failed, or returned a shape other than ``[prompt]``, NaN or infinity.
    """
    if metric is kl_div:
        losses = _divergence(logits, clean_logits).flatten(start_dim=1).mean(dim=1)
    elif metric is mse:
        losses = (logits - clean_logits).square().double().flatten(start_dim=1).mean(dim=1)
    else:
        # Take each row's mean before the next call: a metric may reuse one output buffer, or return a
        # view that keeps the row's copy of the logits alive.
        losses = torch.stack(
            [
                _mean_over_prompts(name, _called(name, metric, row, clean_logits, batch), row)
                for row in logits
            ]
        )
    return check_finite(name, losses)


def check_finite(name: str, losses: Tensor) -> Tensor:
    """Return ``losses`` if all of them are finite.

    Raises:
        MetricError: a loss is NaN or infinite; the message names the metric.
    """
    if not math.isfinite(losses.detach().sum()):  # sums of finite losses do not overflow FP64
        bad = losses[~losses.isfinite()][0]
        raise MetricError(f"metric {name!r} returned {float(bad)}; losses must be finite")
    return losses


def _called(
    name: str, metric: Metric, logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch
) -> Tensor:
    """Call a metric on copies of the logits, since it may write into its arguments.

    Raises:
        MetricError: the metric raised one of `MISFITS`; other exceptions propagate.
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
