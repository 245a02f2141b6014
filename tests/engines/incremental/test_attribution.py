"""Scores of the full graph against those from hooks on the host model, which share no code with it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.engines.incremental import attribution
from pahq_plugin.engines.incremental.attribution import Points, attribute, parts_of, prompt_bytes
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import MetricError, PahqWarning
from pahq_plugin.host import AblationType, PatchableModel, PromptDataLoader, PruneScores
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.models.adapt import adapt
from tests.engines.incremental.test_engine_kinds import GROUPED_LLAMA, LeftPadding, TwoLengths, batch
from tests.helpers.architectures import build, random_architecture
from tests.helpers.small import KINDS, OTHER_KINDS, VOCABULARY, loader, patchable, tokens, transformer

POINTS: tuple[Points, ...] = ("clean", "inputs", "outputs")
SEEDS = [
    *(pytest.param(seed, id=f"seed{seed}") for seed in range(6)),
    *(pytest.param(seed, id=f"seed{seed}", marks=pytest.mark.full) for seed in range(6, 80)),
]


def question_of(
    model: PatchableModel,
    prompts: PromptDataLoader,
    ablation: AblationType = AblationType.RESAMPLE,
    metric: Any = "logit_diff",
) -> Question:
    batches = collect_batches(model, prompts, None)
    return Question(model, prompts, batches, ablation, resolve_metric(metric, VOCABULARY))


def both(question: Question, points: Points, steps: int = 2) -> tuple[PruneScores, PruneScores]:
    """Scores from our forwards, and from hooks on the host."""
    with borrowed(question.model):
        return attribute(question, points, steps), attribute_by_hooks(question, points, steps)


def assert_close(found: PruneScores, expected: PruneScores) -> None:
    largest = max(float(values.abs().max()) for values in expected.values())
    assert largest > 1e-4 and found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_are_those_of_hooks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random architectures, in one part or one prompt at a time, some products or all at once."""
    drawn = random_architecture(seed, max_edges=120)
    draw = random.Random(seed)
    monkeypatch.setitem(attribution.PART_BYTES, "cpu", draw.choice([1, 2**28]))
    monkeypatch.setitem(attribution.HELD_BYTES, "cpu", draw.choice([1, 2**23]))
    question = question_of(*build(drawn), ablation=drawn.ablation)
    for points in POINTS:
        assert_close(*both(question, points))
    other = replace(question, metric=resolve_metric(draw.choice(["kl_div", "mse"]), drawn.d_vocab))
    assert_close(*both(other, draw.choice(["inputs", "outputs"])))


@pytest.mark.parametrize("ablation", list(AblationType), ids=lambda kind: kind.name)
def test_scores_of_every_ablation(ablation: AblationType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over a batch are of the whole batch, also where its prompts are attributed one by one."""
    monkeypatch.setitem(attribution.PART_BYTES, "cpu", 1)
    drawn = replace(random_architecture(1, max_edges=80), positional_edges=True)
    assert_close(*both(question_of(*build(drawn), ablation=ablation), "inputs"))


@pytest.mark.parametrize(
    "kind", [*KINDS.values(), *OTHER_KINDS, GROUPED_LLAMA], ids=lambda kind: next(iter(kind))
)
def test_scores_of_other_kinds_of_attention_and_mlp(kind: dict[str, Any]) -> None:
    question = question_of(patchable(transformer(**kind)), loader())
    assert_close(*both(question, "inputs"))
    assert_close(*both(question, "outputs", 1))


def test_scores_of_joint_inputs_of_a_parallel_grouped_model() -> None:
    kind = GROUPED_LLAMA | {"parallel_attn_mlp": True}
    model = patchable(transformer(separate_qkv=False, **kind), separate_qkv=False)
    for points in POINTS:
        assert_close(*both(question_of(model, loader()), points))


def test_scores_after_a_common_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its KV caches are of whole batches, so no batch is divided."""
    monkeypatch.setitem(attribution.PART_BYTES, "cpu", 1)
    kind = GROUPED_LLAMA | {"ungroup_grouped_query_attention": False}
    inner, clean, corrupt = transformer(**kind), tokens(0), tokens(1)
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", len(clean))
    with torch.inference_mode():
        inner(clean[:, :2], past_kv_cache=cache)
    cache.freeze()
    model = adapt(inner, kv_caches=(cache,))
    question = question_of(model, batch(clean[:, 2:], corrupt[:, 2:]), metric="kl_div")
    for points in POINTS[1:]:
        assert_close(*both(question, points))


@pytest.mark.parametrize("ablation", [AblationType.RESAMPLE, AblationType.ZERO])
def test_scores_of_padded_prompts(ablation: AblationType) -> None:
    """A query in the padding attends to nothing, and has no gradient."""
    model = patchable(transformer())
    model.wrapped_model.tokenizer = LeftPadding()  # type: ignore[assignment]
    clean = torch.tensor([[0, 3, 5, 7, 9], [0, 0, 6, 8, 9], [0, 0, 0, 3, 4]])
    corrupt = torch.tensor([[0, 3, 6, 7, 9], [0, 3, 6, 8, 9], [0, 0, 0, 5, 4]])
    for points in POINTS[1:]:
        assert_close(*both(question_of(model, batch(clean, corrupt), ablation, "kl_div"), points))


def test_scores_of_batches_of_different_lengths() -> None:
    question = question_of(patchable(transformer()), TwoLengths(), metric="kl_div")
    assert_close(*both(question, "inputs"))


def test_parts_of_a_batch_hold_its_prompts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (whole,) = patchable(transformer()), loader()
    assert len(parts_of(model, whole)) == 1
    monkeypatch.setitem(attribution.PART_BYTES, "cpu", 2 * prompt_bytes(model, whole.clean.shape[1]))
    parts = parts_of(model, whole)
    assert [len(part.clean) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.clean for part in parts]), whole.clean)


def test_a_metric_of_ones_own_that_is_flat_at_the_clean_state_is_noticed() -> None:
    def distance(logits: torch.Tensor, clean: torch.Tensor, batch: object) -> torch.Tensor:
        return resolve_metric("kl_div", VOCABULARY)[1](logits, clean, batch)  # type: ignore[arg-type]

    question = question_of(patchable(transformer()), loader(), metric=distance)
    with borrowed(question.model):
        for points, steps in (("clean", 5), ("inputs", 1)):
            with pytest.warns(PahqWarning, match="'distance' hardly changes"):
                attribute(question, points, steps)  # type: ignore[arg-type]
        attribute(question, "inputs", 2)
        attribute(replace(question, metric=resolve_metric("logit_diff", 2)), "clean", 1)


@pytest.mark.parametrize("scored", [attribute, attribute_by_hooks])
def test_a_metric_without_a_gradient_is_refused(scored: Any) -> None:
    def best(logits: torch.Tensor, clean: torch.Tensor, batch: object) -> torch.Tensor:
        return logits.argmax(dim=-1).float()

    question = question_of(patchable(transformer()), loader(), metric=best)
    with borrowed(question.model), pytest.raises(MetricError, match="'best' cannot be differentiated"):
        scored(question, "clean", 1)
