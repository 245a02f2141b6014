"""Plans: what they divide adds up, and what they refuse they would take with what they ask for."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pahq_plugin as pahq
from pahq_plugin.engines.incremental.budget import budget_for
from pahq_plugin.engines.placement.plan import LEAST_PASSES, Plan, parse_bytes, plan_memory, units_of
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.models.checks import weight_parameters
from tests.helpers.architectures import build, random_architecture
from tests.helpers.families import FAMILIES, family_loader, family_model
from tests.helpers.refused import refused

CPU = torch.device("cpu")

USUAL = budget_for(CPU).together

INT8 = pahq.PrecisionConfig(low="int8", mlp="int8")


def planned(seed: int, max_memory: int, low: bool = False) -> tuple[Plan, object]:
    model, loader = build(random_architecture(seed, max_edges=300))
    return plan_memory(
        model, collect_batches(model, loader, None), max_memory, INT8 if low else None, USUAL
    ), model


def test_the_least_is_an_eighth_of_what_is_usual_on_a_cpu() -> None:
    """Also on a GPU, whose usual passes are a hundred times as large."""
    assert LEAST_PASSES == USUAL // 8


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 400), megabytes=st.integers(30, 120), low=st.booleans())
def test_what_is_divided_adds_up(seed: int, megabytes: int, low: bool) -> None:
    plan, model = planned(seed, megabytes * 10**6, low)
    units = {unit.name: unit.nbytes for unit in units_of(model)}
    weights = sum(p.nbytes for _, p in weight_parameters(model))
    assert plan.weights == weights
    assert plan.stay <= units.keys()
    small = weights - sum(units.values())
    assert plan.staying == small + sum(units[name] for name in plan.stay)
    caches = plan.caches if plan.caches_stay else 0
    taken = plan.staying + plan.window + plan.low + caches + plan.passes
    assert taken <= plan.max_memory
    assert plan.everything_stays == (plan.stay == units.keys())
    if not plan.everything_stays:
        assert plan.window >= 2 * max(n for name, n in units.items() if name.startswith("blocks"))
    assert plan.passes <= USUAL


def test_more_memory_never_lets_less_stay() -> None:
    plans = [planned(3, 10**5 * n)[0] for n in range(240, 1000, 5)]
    staying = [plan.staying for plan in plans]
    assert staying == sorted(staying)
    assert not plans[0].everything_stays and plans[-1].everything_stays
    assert len({plan.staying for plan in plans}) >= 2


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(5, 10**6)
    enough = int(re.search(r"at least (\d+) bytes", str(caught.value))[1])  # type: ignore[index]
    planned(5, enough)
    with refused(ConfigError, "max_memory"):
        planned(5, enough - 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_units_hold_every_matrix_and_no_bias(name: str) -> None:
    model = pahq.adapt(family_model(name))
    held = {id(p) for unit in units_of(model) for p in unit.parameters}
    for key, parameter in weight_parameters(model):
        is_matrix = any(part.lstrip("_").startswith("W_") for part in key.split("."))
        assert (id(parameter) in held) == (is_matrix and key != "pos_embed.W_pos"), key


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("17", 17), (17, 17),
     ("2T", 2 * 10**12), (" 3k ", 3000), ("1KiB", 1024), ("12B", 12)],
)  # fmt: skip
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "0", 0, -5, True, 1.5, "1e9", "8 G B", "8XB", "nan", "٣GB", "9" * 40, None],
)
def test_wrong_sizes_are_refused(text: object) -> None:
    with refused(ConfigError, "max_memory"):
        parse_bytes(text)  # type: ignore[arg-type]


def test_a_large_budget_lets_everything_stay() -> None:
    model = pahq.adapt(family_model("llama-3"))
    plan = plan_memory(model, collect_batches(model, family_loader(), 1), 10**9, INT8, USUAL)
    assert plan.everything_stays and plan.screens and "all weights stay" in str(plan)
