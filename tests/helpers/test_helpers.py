"""The helpers themselves: hand-computed numbers, the host's own ACDC, planted mistakes."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset, PromptPairBatch
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.graph_utils import set_all_masks
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import multibatch_kl_div
from hypothesis import given, settings

from tests.helpers import architectures as architectures_module
from tests.helpers import fp8, replay
from tests.helpers.architectures import (
    Architecture,
    architectures,
    build,
    micro_model,
    random_architecture,
)
from tests.helpers.replay import Decision, LossOracle, canonical_order, sequential_acdc

SEEDS = range(60)
MICRO_ORDER = [
    "Resid Start->Resid End",
    "A0.0->Resid End",
    "A0.1->Resid End",
    "Resid Start->A0.0.Q",
    "Resid Start->A0.0.K",
    "Resid Start->A0.0.V",
    "Resid Start->A0.1.Q",
    "Resid Start->A0.1.K",
    "Resid Start->A0.1.V",
]
MICRO_EFFECTS = [  # of each edge alone, in that order, for the two batches
    [4, 2, 8, 0, 0, 2, 1 / 2, 1 / 2, 81 / 8],
    [4, 2, 8, 0, 0, 2, 0, 0, 9 / 2],
]


def first_batch(loader: PromptDataLoader) -> PromptPairBatch:
    return next(iter(loader))


# Random architectures


@pytest.mark.parametrize("seed", SEEDS)
def test_an_architecture_builds(seed: int) -> None:
    architecture = random_architecture(seed)
    model, loader = build(architecture)
    assert len(model.edges) == architecture.n_edges <= 700
    assert all(p.dtype == architecture.dtype for p in model.parameters())
    batches = list(loader)
    assert len(batches) >= 2
    for batch in batches:
        logits = model(batch.clean)
        assert logits.isfinite().all() and 0.1 < logits.std() < 20
        first_difference = (batch.clean != batch.corrupt).int().argmax(dim=1)  # batch
        assert (batch.clean != batch.corrupt).any(dim=1).all()
        assert first_difference[0] == first_difference.min() == architecture.diverge
        assert isinstance(batch.answers, torch.Tensor)
        assert isinstance(batch.wrong_answers, torch.Tensor)


def test_architectures_cover_every_option() -> None:
    drawn = [dataclasses.asdict(random_architecture(seed)) for seed in SEEDS]
    seen = {name: {fields[name] for fields in drawn} for name in drawn[0]}
    assert seen["n_layers"] == {1, 2, 3, 4} and {1, 2, 8} <= seen["n_heads"]
    assert seen["d_head"] == {3, 5, 7, 8, 16}
    assert seen["normalization"] == {None, "LN", "LNPre", "RMS", "RMSPre"}
    assert seen["positional"] == {"standard", "rotary"}
    assert seen["attention_dir"] == {"causal", "bidirectional"}
    assert seen["dtype"] == {torch.float32, torch.float64}
    assert seen["out"] == {None, "last_seq", "not_first_seq"}
    assert seen["metric"] == {"kl_div", "mse", "logit_diff"}
    assert seen["ablation"] == set(AblationType)
    assert seen["diverge"] >= {1, 3, 7}
    flags = ("attn_only", "parallel_attn_mlp", "gated_mlp", "separate_qkv", "positional_edges")
    assert all(seen[flag] == {False, True} for flag in flags)


def test_equal_seeds_build_equal_models_in_either_precision() -> None:
    architecture = dataclasses.replace(random_architecture(3), dtype=torch.float32)
    twin = dataclasses.replace(architecture, dtype=torch.float64)
    (model, loader), (double, same_loader) = build(architecture), build(twin)
    for (name, value), (_, other) in zip(
        model.named_parameters(), double.named_parameters(), strict=True
    ):
        assert torch.equal(value.double(), other), name
    assert torch.equal(first_batch(loader).corrupt, first_batch(same_loader).corrupt)


@settings(max_examples=25, deadline=None)
@given(architectures(max_edges=150))
def test_the_strategy_draws_valid_architectures(architecture: Architecture) -> None:
    model, loader = build(architecture)
    assert len(model.edges) == architecture.n_edges <= 150
    assert model(first_batch(loader).clean).isfinite().all()


# Canonical order


def test_canonical_order_of_the_micro_model() -> None:
    assert [edge.name for edge in canonical_order(micro_model()[0])] == MICRO_ORDER


def test_canonical_order_puts_mlps_before_heads_and_late_positions_first() -> None:
    architecture = dataclasses.replace(
        random_architecture(0),
        n_layers=1,
        n_heads=2,
        attn_only=False,
        parallel_attn_mlp=True,
        separate_qkv=False,
        positional_edges=True,
        length=4,
        diverge=1,
    )
    order = canonical_order(build(architecture)[0])
    names = [(edge.dest.name, edge.seq_idx, edge.src.name) for edge in order]
    sources = ["Resid Start", "A0.0", "A0.1", "MLP 0"]
    assert names == [
        *(("Resid End", position, source) for position in (3, 2, 1, 0) for source in sources),
        *(
            (dest, position, "Resid Start")
            for dest in ("MLP 0", "A0.0", "A0.1")
            for position in (3, 2, 1, 0)
        ),
    ]


# Losses and effects


@pytest.mark.parametrize("batches", [1, 2, None])
def test_effects_of_the_micro_model_are_those_of_paper(batches: int | None) -> None:
    model, loader = micro_model()
    effects = replay.single_effects(model, loader, canonical_order(model), metric="mse", batches=batches)
    used = MICRO_EFFECTS[:batches]
    assert effects == pytest.approx(np.mean(used, axis=0), abs=1e-5)


@pytest.mark.parametrize(
    ("ablation", "effect"),
    [  # Resid Start -> Resid End of the first batch; clean logits are (4, 3)
        (AblationType.RESAMPLE, 4),  # (0, 2) for (2, 0): (2, 5)
        (AblationType.ZERO, 2),  # (2, 3)
        (AblationType.TOKENWISE_MEAN_CLEAN, 1),  # A and B: (1, 1), so (3, 4)
        (AblationType.TOKENWISE_MEAN_CORRUPT, 1),
        (AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT, 1),
        (AblationType.BATCH_TOKENWISE_MEAN, 4),  # one corrupt prompt is its own mean
        (AblationType.BATCH_ALL_TOK_MEAN, 5 / 2),  # of (0, 0) and (0, 2): (2, 4)
    ],
)
def test_ablations_of_the_micro_model_are_those_of_paper(ablation: AblationType, effect: float) -> None:
    model, loader = micro_model()
    edge = canonical_order(model)[0]
    assert replay.single_effects(
        model, loader, [edge], metric="mse", ablation=ablation
    ) == pytest.approx([effect], abs=1e-5)


def test_metrics_of_the_micro_model_are_those_of_paper() -> None:
    model, loader = micro_model()
    edge = canonical_order(model)[1]  # logits (2, 3) instead of (4, 3)
    p = 1 / (1 + math.exp(-1))  # of the first token; (4, 3) and (2, 3) mirror each other
    expected = {"kl_div": p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)}
    expected |= {"logit_diff": 2.0}  # from -(4 - 3) to -(2 - 3)
    for metric, effect in expected.items():
        assert replay.single_effects(model, loader, [edge], metric=metric) == pytest.approx(
            [effect], abs=1e-6
        )
    assert LossOracle(model, loader, "logit_diff", batches=2).loss() == pytest.approx(-1)
    largest = replay.single_effects(
        model, loader, [edge], metric=lambda out, clean, batch: (out - clean).abs().amax(-1)
    )
    assert largest == pytest.approx([2.0], abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 7)])
def test_named_metrics_match_the_host_and_plain_loops(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, clean = (torch.randn(shape, generator=generator).double() for _ in range(2))
    right = [torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([3])]
    wrong = [torch.tensor([4, 5, 6]), torch.tensor([6]), torch.tensor([0])]
    batch = PromptPairBatch(0, 0, logits, logits, right, wrong)
    host = multibatch_kl_div(logits.log_softmax(-1), clean.log_softmax(-1))
    assert replay.kl_div(logits, clean, batch).mean() == pytest.approx(host.item())
    host = torch.nn.functional.mse_loss(logits, clean)
    assert replay.mse(logits, clean, batch).mean() == pytest.approx(host.item())
    by_hand = [
        np.mean([row[w].mean() - row[r].mean() for row in prompt.reshape(-1, 7).numpy()])
        for prompt, r, w in zip(logits, right, wrong, strict=True)
    ]
    assert replay.logit_diff(logits, clean, batch).tolist() == pytest.approx(by_hand)


# The sequential algorithm


def test_acdc_of_the_micro_model_is_that_of_paper() -> None:
    model, loader = micro_model()
    decisions = sequential_acdc(model, loader, threshold=3, metric="mse")
    assert [decision.edge.name for decision in decisions] == MICRO_ORDER
    effects = [decision.effect for decision in decisions]
    assert effects == pytest.approx([4, 2, 8, 0, 0, 0, 1 / 2, 0, 15 / 2], abs=1e-5)
    assert [decision.kept for decision in decisions] == [True, False, True, *5 * [False], True]


@pytest.mark.parametrize("metric", ["kl_div", "mse"])
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(4, 8))]
)
def test_acdc_is_the_hosts(seed: int, metric: str) -> None:
    architecture = random_architecture(seed, max_edges=150)
    model, loader = build(architecture)
    threshold, _ = replay.threshold_for_share(model, loader, metric=metric)
    threshold *= 0.97  # the search for it may end on an effect, which the host computes another way
    decisions = sequential_acdc(model, loader, threshold=threshold, metric=metric)
    assert all(abs(decision.effect / threshold - 1) > 1e-4 for decision in decisions)
    host_model, loader = build(architecture)
    host_model.edges = canonical_order(host_model)  # the host sorts stably, by layer alone
    scores = acdc_prune_scores(
        host_model,
        loader,
        None,
        tao_exps=[0],
        tao_bases=[threshold],
        faithfulness_target=metric,
    )
    for decision in decisions:
        score = decision.edge.prune_score(scores).item()
        assert score == (math.inf if decision.kept else pytest.approx(threshold)), decision


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.full), 1, 2, 3])
def test_threshold_keeps_the_share(seed: int) -> None:
    architecture = random_architecture(seed, max_edges=150)
    model, loader = build(architecture)
    settings = {"metric": architecture.metric, "ablation": architecture.ablation}
    threshold, decisions = replay.threshold_for_share(model, loader, share=(0.1, 0.4), **settings)
    assert 0.1 <= sum(decision.kept for decision in decisions) / architecture.n_edges <= 0.4
    assert decisions == sequential_acdc(model, loader, threshold=threshold, **settings)


def test_no_threshold_is_an_error() -> None:
    model, loader = micro_model()
    with pytest.raises(ValueError, match="no threshold"):
        replay.threshold_for_share(model, loader, metric=lambda out, clean, batch: out[:, 0] * 0)


# Replay

Case = tuple[PatchableModel, PromptDataLoader, list[Decision]]


@pytest.fixture(scope="module")
def micro() -> Case:
    model, loader = micro_model()
    return model, loader, sequential_acdc(model, loader, threshold=3, metric="mse")


@pytest.mark.parametrize("sample", [0.1, None])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in (5, 11))])
def test_replay_agrees_with_the_sequential_algorithm(seed: int, sample: float | None) -> None:
    architecture = random_architecture(seed, max_edges=150)
    model, loader = build(architecture)
    settings = {"metric": architecture.metric, "ablation": architecture.ablation, "batches": 2}
    threshold, decisions = replay.threshold_for_share(model, loader, **settings)
    fresh, loader = build(architecture)
    report = replay.replay(fresh, loader, decisions, threshold=threshold, sample=sample, **settings)
    assert report.agrees, str(report)
    assert 0.02 <= report.share_kept <= 0.6
    assert report.worst_absolute < 1e-9
    if sample is None:
        assert report.n_checked == report.n_edges
    else:
        assert report.n_kept < report.n_checked < report.n_edges


@pytest.mark.parametrize("index", [0, 2, 8])
def test_replay_catches_a_kept_edge_reported_as_removed(micro: Case, index: int) -> None:
    model, loader, decisions = micro
    planted = list(decisions)
    planted[index] = dataclasses.replace(decisions[index], kept=False, effect=2.9)
    report = replay.replay(model, loader, planted, threshold=3, metric="mse")
    assert not report.agrees
    assert report.disagreements[0].index == index
    assert report.disagreements[0].effect == pytest.approx(decisions[index].effect, abs=1e-5)
    assert decisions[index].edge.name in str(report)


def test_replay_catches_a_removed_edge_reported_as_kept(micro: Case) -> None:
    model, loader, decisions = micro
    planted = list(decisions)
    planted[6] = dataclasses.replace(decisions[6], kept=True)
    report = replay.replay(model, loader, planted, threshold=3, metric="mse")
    assert [(wrong.index, wrong.loss) for wrong in report.disagreements] == [
        (6, pytest.approx(2, abs=1e-5))
    ]


def test_replay_measures_wrong_effects(micro: Case) -> None:
    model, loader, decisions = micro
    planted = list(decisions)
    planted[8] = dataclasses.replace(decisions[8], effect=7.0)
    report = replay.replay(model, loader, planted, threshold=3, metric="mse")
    assert report.agrees
    assert report.worst_absolute == pytest.approx(0.5, abs=1e-5)
    assert report.worst_relative == pytest.approx(0.5 / 7.5, abs=1e-5)


def test_replay_sets_ties_aside(micro: Case) -> None:
    model, loader, _ = micro
    tied = 2 + 1e-4  # A0.0 -> Resid End has effect 2
    decisions = sequential_acdc(model, loader, threshold=tied, metric="mse")
    decisions[1] = dataclasses.replace(decisions[1], kept=True)
    report = replay.replay(model, loader, decisions[:2], threshold=tied, metric="mse", sample=None)
    assert (report.n_ties, report.disagreements) == (1, ())
    report = replay.replay(model, loader, decisions[:2], threshold=2.001, metric="mse")
    assert len(report.disagreements) == 1


def test_replay_wants_every_edge_once(micro: Case) -> None:
    model, loader, decisions = micro
    report = replay.replay(model, loader, decisions[:4], threshold=3, metric="mse", sample=None)
    assert report.n_checked == 4 and not report.disagreements and not report.agrees
    with pytest.raises(ValueError, match="more than once"):
        replay.replay(model, loader, [*decisions, decisions[0]], threshold=3)
    stranger = dataclasses.replace(decisions[0], edge=Edge(*two_nodes(decisions), seq_idx=1))
    with pytest.raises(ValueError, match="not in the model"):
        replay.replay(model, loader, [stranger], threshold=3)


def two_nodes(decisions: list[Decision]) -> tuple:
    return decisions[0].edge.src, decisions[0].edge.dest


def test_oracles_give_the_masks_back(micro: Case) -> None:
    model, loader, decisions = micro
    calls: list[Callable[[], object]] = [
        lambda: sequential_acdc(model, loader, threshold=3),
        lambda: replay.replay(model, loader, decisions, threshold=3, metric="mse"),
        lambda: replay.single_effects(model, loader, canonical_order(model)),
    ]
    set_all_masks(model, 0.25)
    try:
        for call in calls:
            call()
            assert all((mask == 0.25).all() for mask in model.patch_masks.values())
    finally:
        set_all_masks(model, 0.0)


def test_unusable_losses_are_refused(micro: Case) -> None:
    model, loader, _ = micro
    broken = LossOracle(model, loader, lambda out, clean, batch: out[:, 0] * math.nan)
    with pytest.raises(FloatingPointError):
        broken.loss()
    empty = PromptDataLoader(PromptDataset([], [], [], []), None, 0, batch_size=1)
    with pytest.raises(ValueError, match="no batch"):
        LossOracle(model, empty)


@pytest.mark.parametrize("module", [architectures_module, fp8, replay])
def test_the_oracles_know_nothing_of_the_plugin(module: ModuleType) -> None:
    source = inspect.getsource(module)
    assert not any(f"{verb} pahq_" in source for verb in ("import", "from"))
