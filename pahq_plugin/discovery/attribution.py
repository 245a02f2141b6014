"""Gradient attribution of every edge with the host model.

Edge attribution patching with integrated gradients (EAP-IG; Hanna et al. 2024, arXiv 2403.17806):

1. for k = 1..m run the model from the embedding ``ablated + k/m (clean - ablated)``;
2. average the gradient of the loss at each destination's input over these runs;
3. score an edge by the inner product of that gradient and its source's (ablated - clean) output.

With m = 1 this is edge attribution patching (Syed et al. 2023, arXiv 2310.10348).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pahq_plugin.engines.question import Question
from pahq_plugin.host.algorithms import edge_attribution
from pahq_plugin.host.patching import PatchBatch, prepare
from pahq_plugin.host.prompts import loader_of
from pahq_plugin.host.types import PatchableModel, PromptPairBatch, PruneScores, remove_hooks
from pahq_plugin.metrics import logit_diff

Loss = Callable[[Tensor, PromptPairBatch], Tensor]

EAP_IG_STEPS = 5


def eap_ig_scores(question: Question) -> PruneScores:
    """Score all edges by EAP-IG on the mean logit difference, with `EAP_IG_STEPS` steps."""
    return _integrated(question, EAP_IG_STEPS)[0]


def eap_scores(question: Question) -> PruneScores:
    """Score all edges by edge attribution patching on the mean logit difference.

    Uses the host's implementation where it supports the ablation and the answers, otherwise a single
    step of ours, summed over batches as the host does.
    """
    if _host_attributes(question):
        drawn = loader_of(list(question.prompts), question.loader)
        return edge_attribution(question.model, drawn, question.ablation)
    scores, batches = _integrated(question, 1)
    return {name: batches * values for name, values in scores.items()}


def _integrated(question: Question, steps: int) -> tuple[PruneScores, int]:
    """Return the scores averaged over all batches, and the number of batches."""
    prepared = prepare(question.model, question.loader, list(question.prompts), question.ablation)
    return integrated_gradients(question.model, prepared, steps, _mean_logit_diff), len(prepared)


def _host_attributes(question: Question) -> bool:
    """Return whether the host's edge attribution supports the question's ablation and answers.

    The host takes means over the batches that it differentiates, not over the data set. It needs answers
    for each output position or, with a single output position, lists of answers on both sides.
    """
    if question.ablation.mean_over_dataset:
        return False
    outputs = _output_shape(question.model, question.prompts[0].clean)
    sides = [(batch.answers, batch.wrong_answers) for batch in question.prompts]
    return all(
        (isinstance(right, list) and isinstance(wrong, list) and len(outputs) == 2)
        or (_for_each(right, outputs) and _for_each(wrong, outputs))
        for right, wrong in sides
    )


def _for_each(answers: object, outputs: torch.Size) -> bool:
    """Return whether ``answers`` holds answers for each output position."""
    return isinstance(answers, torch.Tensor) and answers.shape[:-1] == outputs[:-1]


@torch.inference_mode()
def _output_shape(model: PatchableModel, tokens: Tensor) -> torch.Size:
    """Return the shape of the sliced logits, ``[prompt, (pos,) vocab]``."""
    return model(tokens)[model.out_slice].shape


def _mean_logit_diff(logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Compute the loss that ``eap`` and ``eap-ig`` differentiate."""
    return logit_diff(logits, logits, batch).mean()


def integrated_gradients(
    model: PatchableModel, prepared: Sequence[PatchBatch], steps: int, loss: Loss
) -> PruneScores:
    """Score each edge by the estimated change of the loss when it is patched.

    Args:
        model: a transformer, in evaluation mode.
        prepared: batches with clean and ablated source outputs; scores are averaged over them.
        steps: m, the number of points between the ablated and the clean embedding.
        loss: maps (sliced logits, batch) to a scalar.

    Returns:
        Host prune scores in the model's dtype.
    """
    scores = model.new_prune_scores()
    wrappers = {wrapper.module_name: wrapper for wrapper in model.dest_wrappers}
    for batch in prepared:
        difference = batch.ablated - batch.clean  # [src, batch, pos, d_model]
        for module_name, gradient in _mean_gradients(model, batch, steps, loss).items():
            wrapper = wrappers[module_name]
            pos = "p" if wrapper.seq_dim is not None else ""
            head = "h" if wrapper.head_dim is not None else ""
            inner = torch.einsum(f"sbpd,bp{head}d->{pos}{head}s", difference[wrapper.in_srcs], gradient)
            scores[module_name] += inner / len(prepared)
    return scores


def _mean_gradients(
    model: PatchableModel, batch: PatchBatch, steps: int, loss: Loss
) -> dict[str, Tensor]:
    """Compute the gradient at each destination module's input, averaged over the steps."""
    ablated, clean = batch.ablated[0], batch.clean[0]
    total: dict[str, Tensor] = {}
    for k in range(1, steps + 1):
        embedding = (ablated + (k / steps) * (clean - ablated)).requires_grad_(True)
        with _captured_inputs(model) as inputs:
            logits = model(embedding, start_at_layer=0, **batch.start_arguments)
            value = loss(logits[model.out_slice], batch.batch)
        names = sorted(inputs)
        gradients = torch.autograd.grad(value, [inputs[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient / steps
    return total


@contextmanager
def _captured_inputs(model: PatchableModel) -> Iterator[dict[str, Tensor]]:
    """Record the input of each destination module, ``[batch, pos, (head,) d_model]``."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0]

        return hook

    with remove_hooks() as handles:
        for wrapper in model.dest_wrappers:
            handles.add(wrapper.module.register_forward_pre_hook(keep(wrapper.module_name)))
        yield inputs
