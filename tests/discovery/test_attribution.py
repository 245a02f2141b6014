"""``eap`` is the host's, and ``eap-ig`` its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer

from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.engines.question import Question
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import logit_diff
from tests.helpers.architectures import build
from tests.helpers.replay import canonical_order
from tests.helpers.searches import EAP, by_edge, case, discover, scores_by_edge, small_edges
from tests.helpers.small import LENGTH, loader, patchable, transformer


@pytest.mark.parametrize("seed", [3, 6])
def test_eap_is_the_hosts(seed: int) -> None:
    architecture = case(seed, dtype=torch.float32, out="last_seq")
    model, prompts = build(architecture)
    ours = by_edge(discover(model, prompts, method="eap", batches=None))
    host_model, prompts = build(architecture)
    theirs = PRUNE_ALGO_DICT[EAP].func(host_model, prompts, None)
    assert ours == pytest.approx(scores_by_edge(host_model, theirs), rel=1e-5, abs=1e-7)
    assert len(set(ours.values())) > len(ours) / 2
    by_key = by_edge(discover(model, prompts, method=EAP, batches=None))
    assert by_key == pytest.approx(ours, rel=1e-6, abs=1e-8)


def test_eap_of_one_batch_reads_one_batch() -> None:
    model, prompts = build(case(3, dtype=torch.float32, out="last_seq"))
    one, all_ = (by_edge(discover(model, prompts, method="eap", batches=n)) for n in (1, None))
    assert one != pytest.approx(all_, rel=1e-2)


@pytest.mark.parametrize("ablation", list(AblationType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_attribution_takes_every_ablation(method: str, ablation: AblationType) -> None:
    """Patching by any ablation scores as the first-order change of the loss.

    With one step, ``eap-ig`` is ``eap`` up to the average over batches.
    """
    model, prompts = small_edges(), loader()
    values = by_edge(discover(model, prompts, method=method, ablation=ablation))
    assert all(math.isfinite(value) for value in values.values())
    assert len(set(values.values())) > len(values) / 2
    batches = collect_batches(model, prompts, None)
    question = Question(model, prompts, batches, ablation, ("logit_diff", logit_diff))
    once = scores_by_edge(model, attribute_by_hooks(question, "inputs", 1))
    if method == "eap":
        assert values == pytest.approx(once, rel=1e-4, abs=1e-6)
    else:
        assert values != pytest.approx(once, rel=1e-2)


def mean_difference(logits: Tensor, batch: Any) -> Tensor:
    """Wrong minus right logit of one answer each, mean over the prompts."""
    wrong, right = (logits.gather(1, ids) for ids in (batch.wrong_answers, batch.answers))
    return (wrong - right).mean()


def finite_differences(
    inner: HookedTransformer, model: PatchableModel, prompts: PromptDataLoader, steps: int
) -> dict[Edge, float]:
    """EAP-IG by its definition, with TransformerLens hooks and central differences alone.

    From an embedding on the line from corrupt to clean, the loss is differentiated along (corrupt -
    clean) output of an edge's source, added to what its destination reads.
    """
    batch = next(iter(prompts))
    outputs = [source_outputs(inner, model, t) for t in (batch.clean, batch.corrupt)]
    step = 1e-4
    values = dict.fromkeys(canonical_order(model), 0.0)
    for k in range(1, steps + 1):
        clean, corrupt = (out["Resid Start"] for out in outputs)
        embedding = corrupt + k / steps * (clean - corrupt)
        for edge in values:
            direction = outputs[1][edge.src.name] - outputs[0][edge.src.name]
            losses = [
                loss_with(inner, edge, embedding, sign * step * direction, batch) for sign in (1, -1)
            ]
            values[edge] += (losses[0] - losses[1]) / (2 * step) / steps
    return values


def source_outputs(
    inner: HookedTransformer, model: PatchableModel, prompts: Tensor
) -> dict[str, Tensor]:
    _, cache = inner.run_with_cache(prompts)
    outputs = {}
    for src in model.srcs:
        value = cache[src.module_name]
        outputs[src.name] = value if src.head_idx is None else value[:, :, src.head_idx]
    return outputs


def loss_with(
    inner: HookedTransformer, edge: Edge, embedding: Tensor, added: Tensor, batch: Any
) -> float:
    def start(value: Tensor, hook: object) -> Tensor:
        return embedding

    def add(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        if edge.dest.head_idx is None:
            return value + added
        value[:, :, edge.dest.head_idx] += added
        return value

    hooks = [("blocks.0.hook_resid_pre", start), (edge.dest.module_name, add)]
    logits = inner.run_with_hooks(batch.clean, fwd_hooks=hooks)[:, -1]
    return float(mean_difference(logits, batch))


@pytest.mark.parametrize("kind", [{"act_fn": "gelu"}, {"parallel_attn_mlp": True, "act_fn": "silu"}])
def test_eap_ig_is_its_definition(kind: dict[str, Any]) -> None:
    arguments = {"n_heads": 2, "dtype": torch.float64, **kind}
    with torch.no_grad():
        inner = transformer(4, **arguments)
        model, prompts = patchable(transformer(4, **arguments)), loader(4)
        expected = finite_differences(inner, model, prompts, steps=5)
    ours = by_edge(discover(model, prompts, method="eap-ig"))
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)
    at_clean = by_edge(discover(model, prompts, method="eap"))
    assert ours != pytest.approx(at_clean, rel=1e-2)


@pytest.mark.parametrize("seed", [3, 6])
def test_one_step_of_eap_ig_is_the_gradient_at_clean(seed: int) -> None:
    model, prompts = small_edges(seed=seed), loader(seed)
    eap, once = (
        by_edge(discover(model, prompts, method=method, **steps))
        for method, steps in (("eap", {}), ("eap-ig", {"steps": 1}))
    )
    assert once == pytest.approx(eap, rel=1e-4, abs=1e-6)


def test_scores_per_position_add_up() -> None:
    """Over all positions the scores of an edge add up to that of the edge without positions."""
    whole, each = small_edges(), patchable(transformer(n_heads=2), seq_len=LENGTH)
    for method in ("eap", "eap-ig"):
        total = by_edge(discover(whole, loader(), method=method))
        summed = dict.fromkeys((edge.name for edge in whole.edges), 0.0)
        for edge, value in by_edge(discover(each, loader(), method=method)).items():
            summed[edge.name] += value
        assert summed == pytest.approx({e.name: v for e, v in total.items()}, rel=1e-4, abs=1e-6)
