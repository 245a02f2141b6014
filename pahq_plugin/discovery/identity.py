"""The identity of a run, as JSON values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from pahq_plugin.engines.choose import objection_to
from pahq_plugin.engines.question import Question
from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.host.prompts import prompts_digest
from pahq_plugin.labels import edge_label
from pahq_plugin.metrics import row_losses
from pahq_plugin.models.checks import configuration_digest, model_digest
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.files import installed_version
from pahq_plugin.system.fingerprint import fingerprint, function_digest
from pahq_plugin.system.processes import MEASURED, World


def run_identity(question: Question, precision: PrecisionConfig) -> dict[str, Any]:
    """Return what identifies a search, as JSON values; a `Checkpoint` is resumed only if they match.

    Args:
        question: what the search is asked.
        precision: the precision it screens in.
    """
    model, everyone = question.model, question.everyone or question.prompts
    prompts = list(question.loader) if question.ablation.mean_over_dataset else everyone
    order = hashlib.blake2b("\n".join(map(edge_label, question.edges)).encode(), digest_size=16)
    return {
        "version": installed_version("pahq-plugin"),
        "threshold": question.threshold,
        "metric": question.metric[0],
        "precision": json.loads(json.dumps(precision.record())),
        "engine": question.engine,
        "order": order.hexdigest(),
        "model": model_digest(model),
        "prompts": prompts_digest(prompts),
        "configuration": configuration_digest(model),
        "prefix": _prefix_content(model),
        "metric_content": function_digest(question.metric[1]),
        "obstacle": None if question.placement else objection_to(question),
        MEASURED: _corrupt_loss(question, everyone[0]),
    }


def _prefix_content(model: PatchableModel) -> list[int]:
    """Return fingerprints of the keys and values of common prefixes."""
    caches = [cache for _, cache in sorted((model.kv_caches or {}).items())]
    pasts = [
        x for cache in caches for entry in cache.entries for x in (entry.past_keys, entry.past_values)
    ]
    return [fingerprint(x) for x in pasts]


@torch.inference_mode()
def _corrupt_loss(question: Question, batch: PromptPairBatch) -> float:
    """Compute the loss of the first corrupt prompt against its clean prompt, the same in every process.

    It distinguishes runs that no digest can, such as by globals that a metric reads. With the KV cache
    of a common prefix the whole batch is used, since the cache has its size.
    """
    if question.model.kv_caches is None:
        batch = World(0, len(batch.clean)).share_of(batch)
    clean, corrupt = (question.model(x)[question.model.out_slice] for x in (batch.clean, batch.corrupt))
    return float(row_losses(*question.metric, corrupt[None], clean, batch))
