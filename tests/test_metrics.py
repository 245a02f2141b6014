"""Losses against the host's own metrics and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptPairBatch
from auto_circuit.utils.tensor_ops import batch_avg_answer_diff, multibatch_kl_div
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss

from pahq_plugin.errors import MetricError
from pahq_plugin.metrics import METRICS, kl_div, logit_diff, mse, per_prompt, resolve_metric, row_losses

PROMPTS, VOCABULARY = 3, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(answers: Any = None, wrong_answers: Any = None) -> PromptPairBatch:
    """Three prompts with one right and two wrong answers each."""
    tokens = torch.zeros(PROMPTS, 2, dtype=torch.long)
    right = torch.tensor([[0], [1], [2]]) if answers is None else answers
    wrong = torch.tensor([[3, 4], [5, 6], [0, 1]]) if wrong_answers is None else wrong_answers
    return PromptPairBatch(0, 0, tokens, tokens, right, wrong)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(PROMPTS, VOCABULARY), (PROMPTS, 4, VOCABULARY)])
@pytest.mark.parametrize("seed", range(3))
def test_kl_div_is_the_hosts(shape: tuple[int, ...], seed: int) -> None:
    logits, clean = normal(*shape, seed=seed), normal(*shape, seed=seed + 10)
    ours = kl_div(logits, clean, batch())
    theirs = multibatch_kl_div(log_softmax(logits, dim=-1), log_softmax(clean, dim=-1))
    assert ours.shape == (PROMPTS,) and ours.dtype == torch.float64
    torch.testing.assert_close(ours.mean(), theirs.double(), rtol=1e-5, atol=1e-6)


def test_kl_div_by_hand() -> None:
    """Clean 1/2, 1/2; patched 3/4, 1/4: (ln 2/3 + ln 2) / 2 = ln(4/3) / 2."""
    clean, logits = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    value = kl_div(logits, clean, batch()).item()
    assert math.isclose(value, math.log(4 / 3) / 2, rel_tol=1e-7)
    reversed_value = kl_div(clean, logits, batch()).item()
    assert math.isclose(reversed_value, 0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel_tol=1e-6)


def test_kl_div_sees_changes_below_fp32s_rounding() -> None:
    """A shift of a logit by e costs about e^2 p (1 - p) / 2; FP32 sums round at some 1e-7."""
    clean = normal(1, VOCABULARY)
    logits = clean.clone()
    logits[0, 2] += 2.0**-12
    p = clean.double().softmax(dim=-1)[0, 2]
    expected = float((logits - clean)[0, 2].double().square() * p * (1 - p) / 2)
    assert math.isclose(kl_div(logits, clean, batch()).item(), expected, rel_tol=1e-2)


@pytest.mark.parametrize("name", ["kl_div", "mse"])
def test_the_clean_output_has_no_loss(name: str) -> None:
    clean = normal(PROMPTS, VOCABULARY)
    assert METRICS[name](clean, clean, batch()).tolist() == [0.0] * PROMPTS


@pytest.mark.parametrize("shape", [(PROMPTS, VOCABULARY), (PROMPTS, 4, VOCABULARY)])
def test_mse_is_the_hosts(shape: tuple[int, ...]) -> None:
    logits, clean = normal(*shape), normal(*shape, seed=1)
    losses = mse(logits, clean, batch())
    assert losses.shape == (PROMPTS,)
    torch.testing.assert_close(losses.mean(), mse_loss(logits, clean))
    by_hand = torch.stack([mse_loss(a, b) for a, b in zip(logits, clean, strict=True)])
    torch.testing.assert_close(losses, by_hand)


def test_logit_diff_is_minus_the_hosts() -> None:
    logits = normal(PROMPTS, VOCABULARY)
    losses = logit_diff(logits, logits, batch())
    torch.testing.assert_close(losses.mean(), -batch_avg_answer_diff(logits, batch()))
    first = logits[0, 0] - (logits[0, 3] + logits[0, 4]) / 2
    assert math.isclose(losses[0].item(), -first.item(), rel_tol=1e-5)


def test_logit_diff_of_different_numbers_of_answers() -> None:
    logits = normal(PROMPTS, VOCABULARY)
    answers = [torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([3])]
    wrong = [torch.tensor([4]), torch.tensor([5]), torch.tensor([0, 1, 2])]
    expected = [
        -(row[right].mean() - row[bad].mean()).item()
        for row, right, bad in zip(logits, answers, wrong, strict=True)
    ]
    got = logit_diff(logits, logits, batch(answers, wrong)).tolist()
    assert got == pytest.approx(expected, rel=1e-5)


def test_losses_grow_away_from_the_clean_behaviour() -> None:
    clean = normal(PROMPTS, VOCABULARY)
    away = torch.zeros_like(clean)
    away[torch.arange(PROMPTS), batch().answers[:, 0]] = -1.0  # type: ignore[index,call-overload]
    for metric in METRICS.values():
        losses = [float(metric(clean + size * away, clean, batch()).mean()) for size in (0, 1, 2)]
        assert losses == sorted(losses) and losses[0] < losses[2]


def test_per_prompt_averages_all_but_the_first_axis() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert per_prompt(x).tolist() == [2.5, 8.5]
    assert per_prompt(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 5), seed=st.integers(0, 2**20))
def test_row_losses_are_the_metric_of_each_row(name: str, rows: int, seed: int) -> None:
    logits = normal(rows, PROMPTS, VOCABULARY, seed=seed)
    clean = normal(PROMPTS, VOCABULARY, seed=seed + 1)
    losses = row_losses(name, METRICS[name], logits, clean, batch())
    expected = torch.stack([METRICS[name](r, clean, batch()).double().mean() for r in logits])
    assert losses.shape == (rows,) and losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["kl_div", "mse"])
def test_row_losses_of_several_positions(name: str) -> None:
    logits, clean = normal(4, PROMPTS, 5, VOCABULARY), normal(PROMPTS, 5, VOCABULARY, seed=1)
    expected = torch.stack([METRICS[name](r, clean, batch()).double().mean() for r in logits])
    got = row_losses(name, METRICS[name], logits, clean, batch())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_a_metric_may_return_the_same_buffer_every_time() -> None:
    logits, clean = normal(4, PROMPTS, VOCABULARY), normal(PROMPTS, VOCABULARY, seed=1)
    buffer = torch.zeros(PROMPTS)

    def into_buffer(row: Tensor, clean_row: Tensor, _: PromptPairBatch) -> Tensor:
        return buffer.copy_((row - clean_row).square().mean(dim=-1))

    losses = row_losses("into_buffer", into_buffer, logits, clean, batch())
    torch.testing.assert_close(losses, row_losses("mse", mse, logits, clean, batch()))


def test_callables_are_called_row_by_row() -> None:
    seen: list[torch.Size] = []

    def metric(logits: Tensor, clean: Tensor, prompts: PromptPairBatch) -> Tensor:
        seen.append(logits.shape)
        return logits[:, 0] - clean[:, 0]

    logits, clean = normal(4, PROMPTS, VOCABULARY), normal(PROMPTS, VOCABULARY, seed=1)
    losses = row_losses("mine", metric, logits, clean, batch())
    assert seen == [clean.shape] * 4
    torch.testing.assert_close(losses, (logits - clean)[:, :, 0].double().mean(dim=1))


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", [torch.tensor(1.0), torch.zeros(PROMPTS + 1), torch.zeros(PROMPTS, 1), 0.5, None]
)
def test_other_shapes_are_refused_by_name(result: Any) -> None:
    logits = normal(2, PROMPTS, VOCABULARY)
    with pytest.raises(MetricError, match=r"'mine'.*\[3\]"):
        row_losses("mine", lambda *_: result, logits, logits[0], batch())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    logits = normal(2, PROMPTS, VOCABULARY)
    losses = torch.tensor([0.0, bad, 0.0])
    with pytest.raises(MetricError, match=str(bad)):
        row_losses("mine", lambda *_: losses, logits, logits[0], batch())


@pytest.mark.parametrize("name", METRICS)
def test_nan_logits_are_refused_by_name(name: str) -> None:
    logits = normal(2, PROMPTS, VOCABULARY)
    logits[1] = math.nan
    with pytest.raises(MetricError, match=f"'{name}'.*nan"):
        row_losses(name, METRICS[name], logits, normal(PROMPTS, VOCABULARY), batch())


def test_answers_beyond_the_vocabulary_are_refused() -> None:
    logits = normal(PROMPTS, 2)
    with pytest.raises(MetricError, match="logit_diff") as error:
        logit_diff(logits, logits, batch())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "n_outputs", "name"),
    [(None, 5, "kl_div"), (None, 1, "mse"), ("mse", 1, "mse"), ("logit_diff", 5, "logit_diff")],
)
def test_names_are_resolved(metric: str | None, n_outputs: int, name: str) -> None:
    assert resolve_metric(metric, n_outputs) == (name, METRICS[name])


def test_callables_keep_their_name() -> None:
    def mine(logits: Tensor, clean: Tensor, prompts: PromptPairBatch) -> Tensor:
        return logits[:, 0]

    class Functor:
        __call__ = staticmethod(mine)

    assert resolve_metric(mine, 5) == ("mine", mine)
    assert resolve_metric(Functor(), 5)[0] == "Functor"
