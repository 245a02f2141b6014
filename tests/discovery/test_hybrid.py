"""The hybrid policy: formats by part that meet a budget, and what a search does with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from auto_circuit.utils.patchable_model import PatchableModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pahq_plugin as pahq
from pahq_plugin.discovery.hybrid import assign, configured
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import get_format
from tests.helpers.lent import unusual_state
from tests.helpers.refused import refused
from tests.helpers.small import KINDS, VOCABULARY, loader, patchable, transformer

discover = partial(pahq.discover, progress=False)

NARROWER = {16: 2.0**-6, 8: 1.0}
"""Error of a format relative to one of 8 bits."""

Errors = dict[str, float]
ErrorOf = Callable[[dict[str, str]], float]


def independent(errors: Errors) -> ErrorOf:
    """Errors of single parts in 8 bits, whose squares add up."""

    def error_of(formats: dict[str, str]) -> float:
        low = {part: get_format(name) for part, name in formats.items() if get_format(name).is_low}
        return math.sqrt(sum((errors[part] * NARROWER[f.bits]) ** 2 for part, f in low.items()))

    return error_of


def interacting(errors: Errors, strength: float) -> ErrorOf:
    """Errors of which several together are larger (or smaller) than their squares add up to."""
    alone = independent(errors)

    def error_of(formats: dict[str, str]) -> float:
        low = [part for part, name in formats.items() if get_format(name).is_low]
        return alone(formats) * (1 + strength) ** (len(low) - 1)

    return error_of


parts = st.dictionaries(
    st.sampled_from([f"blocks.{i}.{part}" for i in range(3) for part in ("qkv", "scores", "mlp")]),
    st.floats(1e-6, 10.0),
    min_size=1,
)
"""Errors of parts in 8 bits."""


def all_in(errors: Errors, name: str = "int8") -> dict[str, str]:
    return dict.fromkeys(errors, name)


# Choosing formats ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    errors=parts,
    strength=st.sampled_from([0.0, 0.3, 2.0, -0.2]),
    share=st.floats(1e-4, 2.0),
    name=st.sampled_from(["int8", "fp8_e4m3", "bf16"]),
)
def test_the_measured_error_meets_the_budget(
    errors: Errors, strength: float, share: float, name: str
) -> None:
    error_of = interacting(errors, strength)
    formats = all_in(errors, name)
    budget = share * error_of(formats)
    try:
        found = assign(formats, error_of, budget)
    except ConfigError:  # then no part is within it, not even the one that costs least
        least = min(error_of({part: "bf16"}) for part in errors)
        assert least > budget or strength > 0
        return
    assert found.error == error_of(found.formats) <= budget
    assert found.errors == {part: error_of({part: name}) for part in errors}
    assert found.formats.keys() == errors.keys()
    assert any(get_format(chosen).is_low for chosen in found.formats.values())
    assert set(found.formats.values()) <= {name, "bf16", "fp32"}


@settings(deadline=None, max_examples=60)
@given(errors=parts, strength=st.sampled_from([0.0, 0.3, -0.2]))
def test_nothing_is_widened_within_the_budget(errors: Errors, strength: float) -> None:
    error_of = interacting(errors, strength)
    # Errors that together are smaller than their squares add up to are not known to be.
    budget = 1.001 * max(error_of(all_in(errors)), independent(errors)(all_in(errors)))
    found = assign(all_in(errors), error_of, budget)
    assert found.formats == all_in(errors)
    assert found.error == error_of(all_in(errors))


@settings(deadline=None, max_examples=60)
@given(errors=parts, share=st.floats(0.01, 0.999))
def test_parts_with_larger_errors_are_widened_first(errors: Errors, share: float) -> None:
    error_of = independent(errors)
    assume(len(set(errors.values())) == len(errors))
    budget = share * error_of(all_in(errors))
    try:
        found = assign(all_in(errors), error_of, budget)
    except ConfigError:
        assume(False)
        return
    widened = {part: errors[part] for part, name in found.formats.items() if name != "int8"}
    stay = {part: errors[part] for part, name in found.formats.items() if name == "int8"}
    assert max(errors, key=lambda part: errors[part]) in widened
    assert max(stay.values(), default=0.0) < min(widened.values())


def test_formats_are_widened_one_after_the_other() -> None:
    """Errors 4, 3, 2, of which 16 bits leave 1/64: budgets in between, worked out by hand."""
    errors = {"blocks.0.qkv": 3.0, "blocks.0.mlp": 4.0, "unembed": 2.0}
    expected = {
        5.5: ("int8", "int8", "int8"),  # sqrt(9 + 16 + 4) = 5.39
        5.0: ("int8", "bf16", "int8"),  # sqrt(9 + 4 + 1/256) = 3.61
        3.0: ("bf16", "bf16", "int8"),  # sqrt(4 + 1/256 + 9/4096) = 2.0015
        2.001: ("bf16", "bf16", "bf16"),  # 0.0841
        0.08: ("bf16", "fp32", "bf16"),  # sqrt(9 + 4) / 64 = 0.0563
        0.05: ("fp32", "fp32", "bf16"),  # 2 / 64 = 0.0313
    }
    for budget, formats in expected.items():
        found = assign(all_in(errors), independent(errors), budget)
        assert tuple(found.formats.values()) == formats, budget


def test_a_measured_error_above_the_budget_widens_on() -> None:
    """Squares that add up to 1.41 are within 2, but both parts together cost 2.83."""
    errors = {"blocks.0.qkv": 1.0, "blocks.0.mlp": 1.0}
    found = assign(all_in(errors), interacting(errors, 1.0), 2.0)
    assert set(found.formats.values()) == {"bf16"}  # with one still in int8 it is 2.0002
    assert found.error == pytest.approx(2 * math.sqrt(2) / 64)


@pytest.mark.parametrize("errors", [{"unembed": 0.5}, {"blocks.0.mlp": 2.0, "blocks.1.qkv": 0.25}])
def test_an_impossible_budget_is_refused(errors: Errors) -> None:
    least = min(errors, key=lambda part: errors[part])
    with refused(ConfigError, "budget=0.0001", f"{least}, {errors[least]:.2g}"):
        assign(all_in(errors), independent(errors), 1e-4)


def test_progress_counts_the_parts() -> None:
    errors, told = {"blocks.0.qkv": 1.0, "blocks.0.mlp": 1.0, "unembed": 1.0}, []
    assign(all_in(errors), independent(errors), 9.0, lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


# Which parts there are ----------------------------------------------------------------------------


@pytest.mark.parametrize("attn_only", [False, True])
def test_configured_names_every_low_part(attn_only: bool) -> None:
    cfg = SimpleNamespace(n_layers=2, attn_only=attn_only)
    precision = PrecisionConfig(
        low="int8", mlp="bf16", parts=("qkv", "values", "unembed"), formats={"blocks.1.qkv": "fp32"}
    )
    heads = {"blocks.0.qkv": "int8", "blocks.0.values": "int8", "blocks.1.values": "int8"}
    mlps = {} if attn_only else {"blocks.0.mlp": "bf16", "blocks.1.mlp": "bf16"}
    assert configured(precision, cfg) == heads | mlps | {"unembed": "int8"}


def test_configured_names_nothing_of_a_model_in_fp32() -> None:
    cfg = SimpleNamespace(n_layers=2, attn_only=True)
    assert configured(PrecisionConfig(low="fp32", mlp="int8"), cfg) == {}


# A whole search -----------------------------------------------------------------------------------


MODELS: dict[str, dict[str, Any]] = {
    "layer_norm": KINDS["layer_norm"],
    "rotary_gated": KINDS["rotary_gated"],
    "attention_only": {"attn_only": True},
}


THRESHOLDS = {"layer_norm": 0.05, "rotary_gated": 0.05, "attention_only": 0.01}
"""At which the search keeps so few edges that it goes on screening."""

ALL_PARTS = ("qkv", "output", "scores", "values", "unembed")


def small(kind: str) -> PatchableModel:
    return patchable(transformer(n_heads=2, **MODELS[kind]))


def hybrid(**changes: Any) -> PrecisionConfig:
    return PrecisionConfig(**{"low": "int8", "mlp": "int8", "policy": "hybrid", **changes})


@pytest.mark.parametrize("engine", ["incremental", "host"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_search_finds_what_acdc_finds(kind: str, engine: str, tmp_path: Path) -> None:
    model, threshold = small(kind), THRESHOLDS[kind]
    before = unusual_state(model)
    precision = hybrid(budget=0.005, parts=ALL_PARTS)
    found = discover(model, loader(), threshold=threshold, precision=precision, engine=engine)
    before.assert_unchanged()
    exact = discover(model, loader(), method="acdc", threshold=threshold)
    assert [(d.edge, d.kept) for d in found.decisions] == [(d.edge, d.kept) for d in exact.decisions]
    assert 0 < len(found.circuit) < len(found.decisions)
    assert not all(decision.exact for decision in found.decisions)  # something was screened

    wanted = set(configured(precision, model.cfg))
    assert found.stats.sensitivity.keys() == wanted
    # In the incremental engine a head of the first block changes only when it is high.
    assert all(error > 0 or "blocks.0" in part for part, error in found.stats.sensitivity.items())
    recorded = found.settings["precision"]
    assert recorded["formats"].keys() == wanted
    assert set(recorded["formats"].values()) <= {"int8", "bf16", "fp32"}
    assert (recorded["policy"], recorded["budget"]) == ("hybrid", 0.005)

    loaded = pahq.Discovery.load(found.save(tmp_path / "found"), model)
    assert loaded.settings == found.settings and loaded.stats == found.stats
    assert loaded.decisions == found.decisions


@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_the_formats_it_found_can_be_used_again(engine: str) -> None:
    """They stand for a calibration: none is run, and the decisions are the same to the last bit."""
    model = small("layer_norm")
    first = discover(model, loader(), precision=hybrid(budget=0.005), engine=engine)
    again = PrecisionConfig(**first.settings["precision"])
    second = discover(model, loader(), precision=again, engine=engine)
    assert second.decisions == first.decisions
    assert second.stats.evaluations < first.stats.evaluations
    assert second.stats.sensitivity == {} and first.stats.sensitivity


@pytest.mark.parametrize("engine", ["incremental", "host"])
@pytest.mark.parametrize(
    "changes",
    [
        {"mlp": "bf16", "budget": 1.0},
        {"mlp": "fp8_e4m3", "budget": 1.0},
        {"budget": 0.003},
        {"budget": 10.0},
    ],
)
def test_int4_weights_go_with_the_parts_in_int8(changes: dict[str, Any], engine: str) -> None:
    model = small("layer_norm")
    exact = discover(model, loader(), method="acdc")
    found = discover(model, loader(), precision=hybrid(weights="int4", **changes), engine=engine)
    assert [(d.edge, d.kept) for d in found.decisions] == [(d.edge, d.kept) for d in exact.decisions]
    recorded = found.settings["precision"]
    assert recorded["weights"] == ("int4" if "int8" in recorded["formats"].values() else None)
    with pytest.raises(ConfigError, match="budget=1e-09"):
        discover(model, loader(), precision=hybrid(weights="int4", budget=1e-9), engine=engine)


@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_a_smaller_budget_widens_more(engine: str) -> None:
    bits = []
    for budget in (10.0, 0.005, 0.003):
        found = discover(small("layer_norm"), loader(), precision=hybrid(budget=budget), engine=engine)
        formats = found.settings["precision"]["formats"]
        bits.append(sum(get_format(name).bits for name in formats.values()))
        errors = found.stats.sensitivity
        if budget == 10.0:
            assert set(formats.values()) == {"int8"}
        else:
            assert formats[max(errors, key=lambda part: errors[part])] != "int8"
    assert bits[0] < bits[1] < bits[2]


@pytest.mark.parametrize("engine", ["incremental", "host"])
def test_a_budget_that_no_part_meets_is_refused(engine: str) -> None:
    model = small("layer_norm")
    before = unusual_state(model)
    with refused(ConfigError, "budget=1e-09"):
        discover(model, loader(), precision=hybrid(budget=1e-9), engine=engine)
    before.assert_unchanged()


def test_effects_do_not_depend_on_what_was_screened_with_before() -> None:
    """Calibration tries one format after the other on the same engine."""
    model = small("layer_norm")
    edges = canonical_edges(model)
    formats = [PrecisionConfig(low="fp32", mlp=name) for name in ("fp8_e5m2", "int8", "bf16")]

    def effects(*used: PrecisionConfig) -> list[float]:
        """The last one's, after all others have been used."""
        prompts = collect_batches(model, loader(), None)
        task = Question(
            model, loader(), prompts, AblationType.RESAMPLE, resolve_metric("kl_div", VOCABULARY)
        )
        engine = IncrementalEngine(task, used[0])
        found: list[float] = []
        for precision in used:
            engine.screen_with(precision)
            found = [engine.effects([edge], [False], exact=False)[0] for edge in edges]
        return found

    for precision in formats:
        assert effects(*formats, precision) == effects(precision)
