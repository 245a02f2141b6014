"""The host engine: forwards that are run, and in which precision."""

from __future__ import annotations

import pytest
from auto_circuit.types import AblationType

import pahq_plugin as pahq
from pahq_plugin.engines.question import Question
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import kl_div
from tests.helpers.fake_engine import swept
from tests.helpers.searches import discover, small_edges
from tests.helpers.small import loader, small_model


def test_the_host_engine_runs_the_state_before_once_for_all_kept_edges() -> None:
    """One forward per edge, and one per block from which forwards start and per fresh start; more than
    half are kept."""
    model, order = small_model(), canonical_edges(small_model())
    batches = loader()
    prompts = collect_batches(model, batches, 1)
    prepared = prepare(model, batches, prompts, AblationType.RESAMPLE)
    with borrowed(model):
        engine = HostEngine(
            Question(model, loader, [], AblationType.RESAMPLE, ("kl_div", kl_div)), prepared
        )
        decisions = swept(engine, order, 1e-3).run()
    assert sum(decision.kept for decision in decisions) > len(order) / 2
    starts = model.cfg.n_layers + len(order) // HostEngine.snapshot_every
    assert engine.evaluations <= len(order) + 1 + starts


def test_the_host_engine_takes_clean_runs_in_the_models_own_precision() -> None:
    """Else exact decisions would be measured against what the low precision makes of the prompts."""
    model, prompts = small_edges(), loader()
    low = pahq.PrecisionConfig(low="fp8_e5m2", mlp="fp8_e5m2", scale="tensor", policy="uniform")
    acdc = discover(model, prompts, method="acdc", threshold=0.003, engine="host")
    mixed = discover(model, prompts, threshold=0.003, engine="host", precision=low)
    exact = [d for d in mixed.decisions if d.exact]
    assert exact and mixed.circuit == acdc.circuit
    effects = {d.edge: d.effect for d in acdc.decisions}
    for decision in exact:
        assert decision.effect == pytest.approx(effects[decision.edge], rel=1e-3, abs=1e-6)
