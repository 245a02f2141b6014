"""Gradient attribution of every edge through the host model.

Edge attribution patching with integrated gradients (EAP-IG; Hanna et al. 2024, arXiv 2403.17806):

1. for k = 1..m run the model from the embedding ``ablated + k/m (clean - ablated)``;
2. average the gradient of the loss at the input of every destination over these runs;
3. score an edge by the inner product of that gradient with (ablated - clean) output of its source.

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
    """Score all edges by EAP-IG of the mean logit difference, with `EAP_IG_STEPS` steps."""
    return _integrated(question, EAP_IG_STEPS)[0]


def eap_scores(question: Question) -> PruneScores:
    """Score all edges by edge attribution patching of the mean logit difference.

    The host's own where it does for the ablation and the answers; otherwise a single step of ours,
    summed over batches as the host's is.
    """
    if _host_attributes(question):
        drawn = loader_of(list(question.prompts), question.loader)
        return edge_attribution(question.model, drawn, question.ablation)
    scores, batches = _integrated(question, 1)
    return {name: batches * values for name, values in scores.items()}


def _integrated(question: Question, steps: int) -> tuple[PruneScores, int]:
    """Mean scores of all batches, and how many these are."""
    prepared = prepare(question.model, question.loader, list(question.prompts), question.ablation)
    return integrated_gradients(question.model, prepared, steps, _mean_logit_diff), len(prepared)


def _host_attributes(question: Question) -> bool:
    """Whether the host's own edge attribution does for an ablation and answers.

    It takes means over the batches that it differentiates, not the data set, and answers for each output
    position, or where that is one, a list on both sides.
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
    """Whether there are answers for each output position."""
    return isinstance(answers, torch.Tensor) and answers.shape[:-1] == outputs[:-1]


@torch.inference_mode()
def _output_shape(model: PatchableModel, tokens: Tensor) -> torch.Size:
    """Shape of the logits that count, ``[prompt, (pos,) vocab]``."""
    return model(tokens)[model.out_slice].shape


def _mean_logit_diff(logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """The loss that ``eap`` and ``eap-ig`` differentiate."""
    return logit_diff(logits, logits, batch).mean()


def integrated_gradients(
    model: PatchableModel, prepared: Sequence[PatchBatch], steps: int, loss: Loss
) -> PruneScores:
    """Scores of all edges: the estimated change of the loss when an edge is patched.

    Args:
        model: a transformer, in evaluation mode.
        prepared: batches with clean and ablated source outputs; scores are averaged over them.
        steps: m, points between the ablated and the clean embedding.
        loss: a scalar of (sliced logits, batch).

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
    """Gradient at each destination module's input, averaged over the steps."""
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
    """Collects what each destination module reads, ``[batch, pos, (head,) d_model]``."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0]

        return hook

    with remove_hooks() as handles:
        for wrapper in model.dest_wrappers:
            handles.add(wrapper.module.register_forward_pre_hook(keep(wrapper.module_name)))
        yield inputs
