"""Effects of all edges, each alone, against full forwards of the host from the tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import AblationType
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin.engines.incremental.alone import AloneEngine
from pahq_plugin.engines.incremental.lone_rows import LonePass
from pahq_plugin.errors import ModelError
from pahq_plugin.labels import edge_label
from pahq_plugin.problems import load_problem
from tests.helpers.alone import engine, measured, on_host, question, wrong
from tests.helpers.architectures import build, micro_model, random_architecture
from tests.helpers.small import OTHER_KINDS, loader, patchable, small_model, tokens, transformer

MOST_EDGES = 150

SEEDS = [
    *(pytest.param(seed, id=f"seed{seed}") for seed in (0, 2, 7, 13, 15, 21, 22)),
    *(
        pytest.param(seed, id=f"seed{seed}", marks=pytest.mark.full)
        for seed in range(60)
        if seed not in (0, 2, 7, 13, 15, 21, 22)
    ),
]

LLAMA: dict[str, Any] = {
    "n_key_value_heads": 1, "ungroup_grouped_query_attention": True, "gated_mlp": True,
    "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8,
}  # fmt: skip


def assert_as_on_host(
    model: PatchableModel, prompts: PromptDataLoader, sample: int | None = None, **asked: Any
) -> AloneEngine:
    """All effects (of a random sample of edges on the host) are those of full forwards."""
    made = engine(model, prompts, **asked)
    found = measured(made, model.edges)
    edges = sorted(model.edges, key=edge_label)
    if sample is not None:
        edges = random.Random(0).sample(edges, sample)
    differing = wrong(found, on_host(model, prompts, edges, **asked))
    assert not differing, differing
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_every_effect_of_random_architectures(seed: int) -> None:
    drawn = random_architecture(seed, max_edges=MOST_EDGES)
    model, prompts = build(drawn)
    asked = {"metric": drawn.metric, "ablation": drawn.ablation, "batches": 1 + seed % 2}
    assert_as_on_host(model, prompts, **asked)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("metric", ["kl_div", "mse", "logit_diff"])
@pytest.mark.parametrize("ablation", AblationType)
def test_every_ablation_and_metric(ablation: AblationType, metric: str, seed: int) -> None:
    model, prompts = build(random_architecture(100 + seed, max_edges=60))
    assert_as_on_host(model, prompts, metric=metric, ablation=ablation, batches=None)


def test_a_sample_of_the_effects_of_a_bundled_problem() -> None:
    problem = load_problem("ioi")
    made = assert_as_on_host(problem.model, problem.train_loader, sample=12)
    assert 0.9 * 1519 <= made.evaluations <= 1519


@pytest.mark.full
@pytest.mark.parametrize("name", ["ioi", "greater-than", "induction", "tracr-reverse"])
def test_every_effect_of_bundled_problems(name: str) -> None:
    problem = load_problem(name)
    assert_as_on_host(problem.model, problem.train_loader, metric=problem.metric)


@pytest.mark.full
def test_every_effect_of_a_bundled_problem_with_one_output() -> None:
    problem = load_problem("tracr-xproportion")
    assert_as_on_host(problem.model, problem.train_loader, metric="mse")


def test_effects_worked_out_on_paper() -> None:
    model, prompts = micro_model()
    found = {
        edge_label(edge): effect
        for edge, effect in measured(engine(model, prompts, metric="mse"), model.edges).items()
    }
    assert found == pytest.approx(
        {
            "Resid Start->Resid End": 4, "A0.0->Resid End": 2, "A0.1->Resid End": 8,
            "Resid Start->A0.0.Q": 0, "Resid Start->A0.0.K": 0, "Resid Start->A0.0.V": 2,
            "Resid Start->A0.1.Q": 0.5, "Resid Start->A0.1.K": 0.5, "Resid Start->A0.1.V": 81 / 8,
        },
        abs=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [*OTHER_KINDS, LLAMA], ids=lambda kind: next(iter(kind)))
def test_other_kinds_of_attention_and_mlp(kind: dict[str, Any]) -> None:
    assert_as_on_host(patchable(transformer(**kind)), loader(), sample=40)


def batch(clean: Tensor, corrupt: Tensor) -> PromptDataLoader:
    answers = [torch.tensor([i]) for i in range(len(clean))]
    dataset = PromptDataset(clean, corrupt, answers, answers)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=len(clean), shuffle=False)


@pytest.mark.parametrize(
    "firsts", [(0, 2, 4, 5), (3, 3, 1, 3), (6, 6, 2, 5), (0, 1, 2, 3, 4, 5)], ids=str
)
@pytest.mark.parametrize("changes", [{}, {"positional_embedding_type": "alibi"}], ids=["own", "alibi"])
def test_prompts_that_begin_to_differ_at_different_positions(
    firsts: tuple[int, ...], changes: dict[str, Any]
) -> None:
    """Six beginnings are merged to four; a prompt that begins behind the end never differs."""
    clean, other = tokens(0, prompts=len(firsts)), tokens(1, prompts=len(firsts))
    corrupt = clean.clone()
    for row, first in enumerate(firsts):
        corrupt[row, first:] = other[row, first:]
    assert_as_on_host(patchable(transformer(**changes)), batch(clean, corrupt), sample=40)


@pytest.mark.parametrize("rotary", [False, True])
def test_caches_of_a_common_prefix(rotary: bool) -> None:
    changes = {"positional_embedding_type": "rotary", "rotary_dim": 8} if rotary else {}
    inner, clean, corrupt = transformer(**changes), tokens(0), tokens(1)
    corrupt[:2, :5] = clean[:2, :5]  # two groups of prompts
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", len(clean))
    with torch.inference_mode():
        inner(clean[:, :3], past_kv_cache=cache)
    cache.freeze()
    model = patchable(inner, kv_caches=(cache,))
    assert_as_on_host(model, batch(clean[:, 3:], corrupt[:, 3:]), sample=40)


class LeftPadding:
    """What the host asks of a tokenizer that pads on the left with its first token, as GPT-2's."""

    padding_side = "left"
    pad_token_id = bos_token_id = 0


@pytest.mark.parametrize("changes", [{}, {"positional_embedding_type": "rotary", "rotary_dim": 8}])
def test_padding_on_the_left(changes: dict[str, Any]) -> None:
    inner: Any = transformer(**changes)
    inner.tokenizer = LeftPadding()
    model = patchable(inner)
    clean = torch.tensor([[0, 3, 5, 7, 9], [0, 0, 3, 6, 9], [4, 3, 5, 7, 8]])
    corrupt = torch.tensor([[0, 4, 5, 7, 9], [0, 0, 3, 7, 9], [0, 3, 5, 7, 8]])
    assert_as_on_host(model, batch(clean, corrupt), sample=40)


def test_small_passes_find_the_same() -> None:
    model, prompts = small_model(), loader()
    wide, narrow = engine(model, prompts), engine(model, prompts, memory=40_000)
    passes = [0]
    original = narrow._losses

    def counted(edges: Any) -> Any:
        passes[0] += 1
        return original(edges)

    narrow._losses = counted  # type: ignore[method-assign]
    few, many = (measured(each, model.edges) for each in (wide, narrow))
    assert few == pytest.approx(many, rel=1e-4, abs=1e-7)
    assert passes[0] > 10 and wide.evaluations == narrow.evaluations


def test_edges_without_a_difference_need_no_row() -> None:
    """Position 0 never differs, and of the last layer only the last position's queries count."""
    model = patchable(transformer(), seq_len=6)
    made = assert_as_on_host(model, loader_of_positions(), sample=60)
    found = measured(made, model.edges)
    assert all(effect == 0 for edge, effect in found.items() if edge.seq_idx == 0)
    assert made.evaluations / 2 < 0.7 * len(model.edges)


def loader_of_positions() -> PromptDataLoader:
    clean, corrupt = tokens(0), tokens(1)
    corrupt[:, 0] = clean[:, 0]
    answers = [torch.tensor([i]) for i in range(4)]
    dataset = PromptDataset(clean, corrupt, answers, answers)
    return PromptDataLoader(dataset, seq_len=6, diverge_idx=0, batch_size=4, shuffle=False)


@pytest.mark.parametrize("fits", [4, 30])
def test_out_of_memory_halves_the_rows(fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = small_model(), loader()
    expected = measured(engine(model, prompts), model.edges)
    original = LonePass.final

    def final(self: LonePass) -> Tensor:
        if len(self._rows) > fits:
            raise MemoryError
        return original(self)

    monkeypatch.setattr(LonePass, "final", final)
    found = measured(engine(model, prompts), model.edges)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_too_little_memory_for_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def final(self: LonePass) -> Tensor:
        raise MemoryError

    made = engine(small_model(), loader())
    monkeypatch.setattr(LonePass, "final", final)
    with pytest.raises(ModelError, match="not enough memory"):
        made.alone(made.in_turn(list(made._model.edges))[-3:])


def test_the_order_keeps_the_edges_of_a_pass_together() -> None:
    model = small_model()
    made = AloneEngine(question(model, loader()))
    order = made.in_turn(list(model.edges))
    assert sorted(map(edge_label, order)) == sorted(map(edge_label, model.edges))
    stages = [made._graph.place(edge)[0] for edge in order]
    assert stages == sorted(stages, reverse=True)
