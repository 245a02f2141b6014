"""A result in one line, its strongest edges, and what its circuit loses."""

from __future__ import annotations

import pytest
from auto_circuit.prune import run_circuits
from auto_circuit.types import PatchType
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Discovery, Stats
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader
from tests.results.shown import printed


def test_the_repr_is_one_line(found: Discovery) -> None:
    kept, edges = len(found.circuit), len(found.decisions)
    text = repr(found)
    assert text.startswith(f"<Discovery: {kept} of {edges} edges kept by acdc, threshold 0.01, mse")
    assert text.endswith(">") and "\n" not in text and len(text) < 160


def test_the_repr_reads_no_weights(found: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_plugin.results.result.model_digest", lambda model: 1 / 0)
    assert repr(found) and printed(found) and found._repr_html_()


def test_what_removed_edges_add_is_the_loss_of_the_circuit(found: Discovery) -> None:
    """Independent of the sum: the circuit alone, patched by the host, against the whole model."""

    model, prompts = found.model, loader()
    count = len(found.circuit)
    outs = run_circuits(model, prompts, [count], found.prune_scores, PatchType.TREE_PATCH)
    batch = next(iter(prompts))
    after = outs[count][batch.key]
    loss = (after - model(batch.clean)[model.out_slice]).pow(2).mean().item()
    removed = sum(d.effect for d in found.decisions if not d.kept)
    assert removed == pytest.approx(loss, rel=1e-3)


def test_an_empty_circuit_is_shown(model: PatchableModel) -> None:
    edges = canonical_order(model)
    settings = {"method": "acdc", "threshold": 1.0, "metric": "mse", "ablation": "resample"}
    nothing = Discovery(tuple(Decision(e, 0.0, False, True) for e in edges), settings, Stats(), model)
    assert "0 of" in repr(nothing) and "0 of" in printed(nothing) and "0 of" in nothing._repr_html_()
    assert nothing.top() == () and nothing.to_networkx().number_of_nodes() == 0


def test_top_is_the_strongest_kept(model: PatchableModel, found: Discovery) -> None:
    assert [d.edge for d in found.top(5)] == [
        d.edge for d in sorted(found.decisions, key=lambda d: -d.effect)[:5]
    ]
    assert set(d.edge for d in found.top(10**6)) == found.circuit and found.top(0) == ()
    scored = pahq.discover(model, loader(), method="eap", n_edges=20, progress=False)
    sizes = [abs(d.effect) for d in scored.top()]
    assert sizes == sorted(sizes, reverse=True) and min(d.effect for d in scored.top()) < 0
    for wrong in (-1, 2.0, True, "3"):
        with pytest.raises(ConfigError, match="count"):
            found.top(wrong)  # type: ignore[arg-type]
