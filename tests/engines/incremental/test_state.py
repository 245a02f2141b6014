"""The present state after going back and after screening, against the host engine."""

from __future__ import annotations

import random

import pytest

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.architectures import build, random_architecture
from tests.helpers.engines import engines
from tests.helpers.fake_engine import swept


@pytest.mark.parametrize("seed", range(4))
def test_restore_equals_removing_one_after_the_other(seed: int) -> None:
    architecture = random_architecture(300 + seed, max_edges=150)
    model, host, quick = engines(architecture)
    draw = random.Random(seed)
    edges = canonical_edges(model)
    removed = draw.sample(edges, len(edges) // 2)
    for edge in removed:
        quick.remove([edge])
    quick.restore(removed[: len(removed) // 2])
    host.restore(removed[: len(removed) // 2])
    for edge in [e for e in edges if e not in removed][::5]:
        slow = host.effects([edge], [False], exact=True)[0]
        fast = quick.effects([edge], [False], exact=True)[0]
        assert fast == pytest.approx(slow, abs=max(1e-5, 1e-4 * abs(slow)))


def test_screening_never_commits_low_precision_numbers() -> None:
    """After a screened sweep the engine's state is what FP32 makes of the same removals."""
    model, host, _ = engines(random_architecture(9, max_edges=150))
    architecture = random_architecture(9, max_edges=150)
    loader = build(architecture)[1]
    prompts = collect_batches(model, loader, None)
    kind, metric = ablation_type(architecture.ablation), resolve_metric(architecture.metric, 2)
    screen = PrecisionConfig(low="fp8_e5m2", mlp="fp8_e5m2", guard=0.0)
    quick = IncrementalEngine(Question(model, loader, prompts, kind, metric), screen)
    decisions = swept(quick, canonical_edges(model), 1e-3).run()
    assert quick.screens and not any(d.exact for d in decisions)
    host.restore([d.edge for d in decisions if not d.kept])
    for decision in [d for d in decisions if d.kept][:10]:
        slow = host.effects([decision.edge], [False], exact=True)[0]
        fast = quick.effects([decision.edge], [False], exact=True)[0]
        assert fast == pytest.approx(slow, abs=max(1e-5, 1e-4 * abs(slow)))
