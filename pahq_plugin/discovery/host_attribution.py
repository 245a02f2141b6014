"""Gradient attribution with hooks on the host model: slow, but of any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pahq_plugin.engines.incremental.attribution import Points
from pahq_plugin.engines.question import Question
from pahq_plugin.host import PatchableModel, PruneScores
from pahq_plugin.host.patching import PatchBatch, prepare
from pahq_plugin.host.types import remove_hooks
from pahq_plugin.metrics import Metric, differentiated, row_losses

Outputs = Mapping[str, Tensor]
"""Outputs of source modules by name, ``[batch, pos, (head,) d_model]``."""


@torch.enable_grad()
def attribute_by_hooks(question: Question, points: Points, steps: int) -> PruneScores:
    """Score all edges; see `pahq_plugin.engines.incremental.attribution.attribute`."""
    model = question.model
    scores = model.new_prune_scores()
    modules = {wrapper.module_name: wrapper for wrapper in model.dest_wrappers}
    prepared = prepare(model, question.loader, list(question.prompts), question.ablation)
    for batch in prepared:
        difference = batch.ablated - batch.clean  # [src, batch, pos, d_model]
        at = list(_points(model, batch, points, steps))
        for replaced in at:
            for name, gradient in _gradients(model, batch, replaced, question.metric).items():
                module = modules[name]
                pos = "p" if module.seq_dim is not None else ""
                head = "h" if module.head_dim is not None else ""
                inner = torch.einsum(
                    f"sbpd,bp{head}d->{pos}{head}s", difference[module.in_srcs], gradient
                )
                scores[name] += inner / (len(at) * len(prepared))
    return scores


def _points(model: PatchableModel, batch: PatchBatch, points: Points, steps: int) -> Iterator[Outputs]:
    """Yield for each point the outputs of source modules that are replaced there."""
    if points == "clean":
        yield {}
        return
    for wrapper in model.src_wrappers:
        if points == "inputs" and wrapper.src_idxs.start != 0:
            continue
        clean, ablated = (side[wrapper.src_idxs] for side in (batch.clean, batch.ablated))
        for k in range(1, steps + 1):
            value = ablated + k / steps * (clean - ablated)  # [src, batch, pos, d_model]
            own = value[0] if wrapper.head_dim is None else value.permute(1, 2, 0, 3)
            yield {wrapper.module_name: own}


def _gradients(
    model: PatchableModel, batch: PatchBatch, replaced: Outputs, metric: tuple[str, Metric]
) -> dict[str, Tensor]:
    """Compute the gradient of the mean loss at each destination module's input, by module; modules
    without influence are left out."""
    with _hooked(model, replaced) as inputs:
        logits = model(batch.batch.clean)[model.out_slice]
    loss = row_losses(*metric, logits[None], batch.logits.clone(), batch.batch).sum()
    with differentiated(metric[0]):
        found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    pairs = zip(inputs, found, strict=True)
    return {name: gradient for name, gradient in pairs if gradient is not None}


@contextmanager
def _hooked(model: PatchableModel, replaced: Outputs) -> Iterator[dict[str, Tensor]]:
    """Replace outputs of source modules, and record the input of each destination module, ``[batch, pos,
    (head,) d_model]``, so that it can be differentiated."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *others = arguments
            inputs[name] = x if x.requires_grad else x.detach().requires_grad_()
            return (inputs[name], *others)

        return hook

    with remove_hooks() as handles:
        for wrapper in model.dest_wrappers:
            handles.add(wrapper.module.register_forward_pre_hook(keep(wrapper.module_name)))
        for wrapper in model.src_wrappers:
            if wrapper.module_name in replaced:
                own = replaced[wrapper.module_name]
                handles.add(wrapper.module.register_forward_hook(lambda *_, own=own: own))
        yield inputs
