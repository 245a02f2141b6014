"""Both engines on the same question."""

from __future__ import annotations

from typing import Any

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.host import PatchableModel
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from tests.helpers.architectures import Architecture, build


def engines(
    architecture: Architecture, **options: Any
) -> tuple[PatchableModel, HostEngine, IncrementalEngine]:
    """Both engines on the same question, each on a model of its own."""
    kind = ablation_type(architecture.ablation)
    made = []
    for _ in range(2):
        model, loader = build(architecture)
        prompts = collect_batches(model, loader, None)
        metric = resolve_metric(architecture.metric, architecture.d_vocab)
        made.append(Question(model, loader, prompts, kind, metric))
    slow, fast = made
    prepared = prepare(slow.model, slow.loader, slow.prompts, kind)
    host = HostEngine(slow, prepared)
    quick = IncrementalEngine(fast, **options)
    return slow.model, host, quick
