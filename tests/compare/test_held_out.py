"""Circuits on held-out prompts, against the host's own runs and metrics and hand-made logits."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptPairBatch
from auto_circuit.metrics.prune_metrics.answer_diff import measure_answer_diff
from auto_circuit.metrics.prune_metrics.correct_answer_percent import measure_correct_ans_percent
from auto_circuit.metrics.prune_metrics.kl_div import measure_kl_div
from auto_circuit.prune import run_circuits
from auto_circuit.types import AblationType, Edge, PatchType, PruneScores
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from torch.nn.functional import mse_loss

import pahq_plugin as pahq
from pahq_plugin.compare.held_out import MEASURES, Judge, correct, has_answers, judging
from pahq_plugin.errors import PromptError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.metrics import METRICS, kl_div
from tests.helpers.lent import unusual_state
from tests.helpers.small import LENGTH, loader, patchable, small_model, transformer

RESAMPLE, ZERO = AblationType.RESAMPLE, AblationType.ZERO
LOSS, DIFFERENCE, CORRECT = range(3)


@cache
def problem(name: str) -> pahq.Problem:
    return pahq.load_problem(name)


def some_edges(model: PatchableModel, share: float, seed: int = 0) -> set[Edge]:
    """A random share of the edges."""
    edges = canonical_edges(model)
    return set(random.Random(seed).sample(edges, round(share * len(edges))))


def means(rows: list[list[float]]) -> list[float]:
    return np.array(rows).mean(axis=0).tolist()


def hosts_outputs(
    model: PatchableModel,
    prompts: PromptDataLoader,
    circuit: set[Edge],
    ablation: AblationType = RESAMPLE,
) -> dict[int, dict[int, Tensor]]:
    """The host's tree patch of all that is outside the circuit."""
    scores: PruneScores = model.circuit_prune_scores(circuit)
    return run_circuits(
        model, prompts, [len(circuit)], scores, PatchType.TREE_PATCH, ablation_type=ablation
    )


def judged(
    model: PatchableModel,
    prompts: PromptDataLoader,
    circuit: set[Edge],
    ablation: AblationType = RESAMPLE,
    metric: str = "kl_div",
) -> list[list[float]]:
    with judging(model, prompts, ablation, METRICS[metric]) as judge:
        return judge.run(circuit)


# Against the host ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("ablation", [RESAMPLE, ZERO, AblationType.TOKENWISE_MEAN_CORRUPT])
@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("kind", ["layer_norm", "parallel"])
def test_a_small_model_does_what_the_host_says(
    kind: str, positional: bool, ablation: AblationType, share: float
) -> None:
    model = (
        patchable(transformer(n_heads=2), seq_len=LENGTH) if positional else small_model(kind, n_heads=2)
    )
    data = loader(prompts=6).dataset
    prompts = PromptDataLoader(data, seq_len=LENGTH, diverge_idx=0, batch_size=3, shuffle=False)
    circuit = some_edges(model, share)
    outputs = hosts_outputs(model, prompts, circuit, ablation)
    rows = judged(model, prompts, circuit, ablation)
    assert len(rows) == 6 and {len(row) for row in rows} == {len(MEASURES)}
    assert means(rows)[LOSS] == pytest.approx(measure_kl_div(model, prompts, outputs)[0][1], abs=1e-5)
    assert means(rows)[DIFFERENCE] == pytest.approx(
        measure_answer_diff(model, prompts, outputs)[0][1], abs=1e-5
    )
    assert 100 * means(rows)[CORRECT] == pytest.approx(
        measure_correct_ans_percent(model, prompts, outputs)[0][1]
    )


@pytest.mark.parametrize("ablation", [RESAMPLE, ZERO])
def test_ioi_is_what_the_host_says(ablation: AblationType) -> None:
    """Most of the edges, so that accuracy and loss lie between the extremes."""
    ioi = problem("ioi")
    model, prompts = ioi.model, ioi.test_loader
    circuit = some_edges(model, 0.9)
    outputs = hosts_outputs(model, prompts, circuit, ablation)
    rows = judged(model, prompts, circuit, ablation)
    assert len(rows) == 64
    expected = [
        measure_kl_div(model, prompts, outputs)[0][1],
        measure_answer_diff(model, prompts, outputs)[0][1],
        measure_correct_ans_percent(model, prompts, outputs)[0][1] / 100,
    ]
    assert means(rows) == pytest.approx(expected, abs=1e-4)


def test_greater_than_has_lists_of_answers() -> None:
    """Prompts differ in the number of right years; the host counts no accuracy there."""
    years = problem("greater-than")
    model, prompts = years.model, years.test_loader
    circuit = some_edges(model, 0.9, seed=1)
    outputs = hosts_outputs(model, prompts, circuit)
    rows = judged(model, prompts, circuit)
    expected = [
        measure_kl_div(model, prompts, outputs)[0][1],
        measure_answer_diff(model, prompts, outputs)[0][1],
    ]
    assert means(rows)[:2] == pytest.approx(expected, abs=1e-4)
    right = []
    for batch in prompts:
        assert isinstance(batch.answers, list)
        best = outputs[len(circuit)][batch.key].argmax(dim=-1).tolist()
        right += [b in ids.tolist() for b, ids in zip(best, batch.answers, strict=True)]
    assert [row[CORRECT] for row in rows] == right


def test_tracr_reverse_is_judged_at_every_position() -> None:
    reverse = problem("tracr-reverse")
    model, prompts = reverse.model, reverse.test_loader
    circuit = some_edges(model, 0.97) | (reverse.true_edges or set())
    outputs = hosts_outputs(model, prompts, circuit)
    rows = judged(model, prompts, circuit, metric="mse")
    clean = [model(batch.clean)[model.out_slice] for batch in prompts]
    got = [outputs[len(circuit)][batch.key] for batch in prompts]
    expected = [
        mse_loss(torch.cat(got), torch.cat(clean)).item(),
        measure_answer_diff(model, prompts, outputs)[0][1],
        measure_correct_ans_percent(model, prompts, outputs)[0][1] / 100,
    ]
    assert means(rows) == pytest.approx(expected, abs=1e-4)


def test_numbers_as_answers_leave_the_loss_only() -> None:
    fractions = problem("tracr-xproportion")
    with judging(fractions.model, fractions.test_loader, RESAMPLE, METRICS["mse"]) as judge:
        assert not judge.answered
        assert {len(row) for row in judge.whole()} == {1}


# Extremes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ioi", "greater-than", "tracr-reverse"])
def test_the_whole_is_clean_and_nothing_is_all_patched(name: str) -> None:
    """With every edge of a resample ablation patched the model does as on the corrupt prompts."""
    given = problem(name)
    model, metric = given.model, METRICS[given.metric]
    with judging(model, given.test_loader, RESAMPLE, metric) as judge:
        whole, empty = judge.whole(), judge.empty()
        assert judge.run(model.edges) == whole and judge.run(set()) == empty
    with torch.no_grad():
        clean, corrupt = [], []
        for batch in given.test_loader:
            logits = model(batch.clean)[model.out_slice]
            patched = model(batch.corrupt)[model.out_slice]
            clean += metric(logits, logits, batch).tolist()
            corrupt += metric(patched, logits, batch).tolist()
    assert [row[LOSS] for row in whole] == pytest.approx(clean, abs=1e-6)
    assert [row[LOSS] for row in empty] == pytest.approx(corrupt, rel=1e-3, abs=1e-5)
    assert means(whole)[CORRECT] > means(empty)[CORRECT]
    assert means(whole)[DIFFERENCE] > means(empty)[DIFFERENCE]


def test_the_complement_patches_the_circuit_itself() -> None:
    """The host's edge patch of a circuit, with clean and corrupt prompts the other way round."""
    model, prompts = small_model(n_heads=2), loader()
    circuit = some_edges(model, 0.3)
    scores = model.circuit_prune_scores(circuit)
    outputs = run_circuits(
        model, prompts, [len(circuit)], scores, PatchType.EDGE_PATCH, reverse_clean_corrupt=True
    )
    rows = judged(model, prompts, model.edges - circuit)
    assert means(rows)[LOSS] == pytest.approx(measure_kl_div(model, prompts, outputs)[0][1], abs=1e-5)


def test_runs_do_not_depend_on_one_another() -> None:
    """The same circuit gives the same bytes, whatever ran before, in any order of edges."""
    model, prompts = small_model(n_heads=2), loader()
    first, second = some_edges(model, 0.4), some_edges(model, 0.4, seed=1)
    with judging(model, prompts, RESAMPLE, kl_div) as judge:
        alone = judge.run(first)
        others = [judge.empty(), judge.run(second), judge.whole()]
        assert all(judge.run(list(reversed(list(first)))) == alone for _ in others)
        assert len({str(rows) for rows in [alone, *others]}) == 4


# The model is given back --------------------------------------------------------------------------


def run_some(judge: Judge) -> None:
    judge.run(some_edges(judge.model, 0.5))


def stop(judge: Judge) -> None:
    judge.run(())
    raise KeyboardInterrupt


def fail_within(judge: Judge) -> None:
    def bad(*_: Any) -> Tensor:
        raise ZeroDivisionError

    Judge(judge.model, judge.prepared, bad, True).run(())


@pytest.mark.parametrize(
    ("body", "error"),
    [(run_some, None), (stop, KeyboardInterrupt), (fail_within, ZeroDivisionError)],
)
def test_the_model_is_given_back_as_it_was(
    body: Callable[[Judge], None], error: type[BaseException] | None
) -> None:
    model = small_model(n_heads=2)
    before = unusual_state(model)
    try:
        with judging(model, loader(), RESAMPLE, kl_div) as judge:
            assert not any(module.training for module in model.modules())
            body(judge)
    except (KeyboardInterrupt, ZeroDivisionError) as raised:
        assert type(raised) is error
    else:
        assert error is None
    before.assert_unchanged()


def test_the_state_of_the_model_does_not_count() -> None:
    plain, odd = small_model(n_heads=2), small_model(n_heads=2)
    unusual_state(odd)
    circuit = {edge.name for edge in some_edges(plain, 0.5)}
    rows = [
        judged(model, loader(), {edge for edge in model.edges if edge.name in circuit})
        for model in (plain, odd)
    ]
    assert rows[0] == rows[1]


def test_an_empty_loader_is_refused() -> None:
    model = small_model(n_heads=2)
    none = PromptDataLoader(loader().dataset, seq_len=None, diverge_idx=0, batch_size=99)
    with pytest.raises(PromptError, match="empty"), judging(model, none, RESAMPLE, kl_div):
        pass


# Right answers ------------------------------------------------------------------------------------


def answered(answers: Any, wrong: Any = None) -> PromptPairBatch:
    """A batch of which only the answers matter."""
    nothing = torch.zeros(2, 1, dtype=torch.long)
    return PromptPairBatch(0, 0, nothing, nothing, answers, nothing if wrong is None else wrong)


ONE_POSITION = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])  # token 1, token 0
THREE_POSITIONS = torch.eye(3)[torch.tensor([[0, 1, 2], [2, 2, 0]])]  # these tokens


@pytest.mark.parametrize(
    ("logits", "answers", "expected"),
    [
        (ONE_POSITION, torch.tensor([[1], [1]]), [1, 0]),
        (ONE_POSITION, torch.tensor([[2, 1], [1, 2]]), [1, 0]),
        (ONE_POSITION, [torch.tensor([1]), torch.tensor([2, 0])], [1, 1]),
        (ONE_POSITION, [torch.tensor([0, 2]), torch.tensor([1])], [0, 0]),
        (THREE_POSITIONS, torch.tensor([[0], [2]]), [1 / 3, 2 / 3]),
        (THREE_POSITIONS, torch.tensor([[0, 1], [0, 1]]), [2 / 3, 1 / 3]),
        (THREE_POSITIONS, torch.tensor([[[0], [1], [1]], [[2], [2], [0]]]), [2 / 3, 1]),
        (THREE_POSITIONS, torch.tensor([[[0, 1]] * 3, [[1, 2]] * 3]), [2 / 3, 2 / 3]),
        (THREE_POSITIONS, [torch.tensor([0, 1]), torch.tensor([1])], [2 / 3, 0]),
    ],
)
def test_correct_by_hand(logits: Tensor, answers: Any, expected: list[float]) -> None:
    shares = correct(logits, answered(answers))
    assert shares.shape == (2,) and shares.dtype == torch.float64
    assert shares.tolist() == pytest.approx(expected)


def test_answers_are_token_ids_or_not() -> None:
    ids = torch.tensor([[1], [2]])
    assert has_answers([answered(ids, ids)], 3)
    assert has_answers([answered(list(ids), list(ids))], 3)
    assert not has_answers([answered(ids, ids)], 2), "beyond the vocabulary"
    assert not has_answers([answered(ids.float(), ids)], 3), "numbers"
    assert not has_answers([answered(ids, ids.float())], 3), "numbers as wrong answers"
    assert not has_answers([answered(ids, ids), answered(-ids, ids)], 3), "one bad batch is enough"
