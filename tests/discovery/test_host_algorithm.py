"""Host algorithms run under their own keys."""

from __future__ import annotations

import math

import pytest
import torch
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT

from pahq_plugin import HostAlgorithm
from pahq_plugin.discovery.scores import UNREMOVED
from pahq_plugin.errors import ConfigError
from tests.helpers.replay import canonical_order
from tests.helpers.searches import EAP, by_edge, discover, scores_by_edge, small_edges
from tests.helpers.small import loader


@pytest.mark.parametrize("key", ["Random", "Act Mag", EAP, "Edge Answer Log Prob Gradient At Clean"])
def test_a_host_algorithm_runs_under_its_own_key(key: str) -> None:
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, method=key, batches=None, seed=11)
    torch.manual_seed(11)
    # The host draws module by module, in the order of a set; we, in that of their names.
    model.patch_masks = dict(sorted(model.patch_masks.items()))
    expected = PRUNE_ALGO_DICT[key].func(model, prompts, None)
    assert by_edge(result) == pytest.approx(scores_by_edge(model, expected), rel=1e-5, abs=1e-7)
    assert result.settings["method"] == key and result.settings["scored"]


def test_the_seed_decides_what_is_drawn() -> None:
    model = small_edges()
    draws = [by_edge(discover(model, loader(), method="Random", seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_official_circuit_is_the_one_given() -> None:
    model = small_edges()
    official = set(canonical_order(model)[3:9])
    result = discover(model, loader(), method="Official Circuit", true_edges=official)
    assert result.circuit == official
    assert {d.effect for d in result.decisions} == {0.0, 1.0}


def test_the_hosts_acdc_becomes_finite() -> None:
    """Edges that it never removes have an infinite score there."""
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, method="ACDC")
    ordered = small_edges()
    ordered.edges = canonical_order(ordered)  # type: ignore[assignment]  # the host's is a set
    expected = PRUNE_ALGO_DICT["ACDC"].func(ordered, prompts, None)
    theirs = scores_by_edge(model, expected)
    finite = max(value for value in theirs.values() if value != math.inf)
    assert math.inf in theirs.values()
    assert result.circuit == {edge for edge, value in theirs.items() if value == math.inf}
    for edge, value in by_edge(result).items():
        wanted = UNREMOVED * finite if theirs[edge] == math.inf else theirs[edge]
        assert value == pytest.approx(wanted, rel=1e-6)
    assert all(bool(values.isfinite().all()) for values in result.prune_scores.values())


def test_options_of_a_host_algorithm() -> None:
    model, prompts = small_edges(), loader()
    swept = {"tao_bases": [3], "tao_exps": [-3]}
    method = HostAlgorithm("one threshold", "", key="ACDC", options=swept)
    result = discover(model, prompts, method=method)
    assert result.circuit == discover(model, prompts, method="acdc", threshold=0.003).circuit
    assert result.settings["method"] == "one threshold" and result.settings["options"] == swept
    wrong = HostAlgorithm("wrong", "", key="ACDC", options={"taus": [3]})
    with pytest.raises(ConfigError, match="'taus'"):
        discover(model, prompts, method=wrong)


def test_the_hosts_training_curves_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(*_: object, **__: object) -> None:
        raise AssertionError("a browser window was opened")

    monkeypatch.setattr("plotly.graph_objects.Figure.show", shown)
    quick = HostAlgorithm("probing", "", key="Subnetwork Edge Probing", options={"epochs": 2})
    assert discover(small_edges(), loader(), method=quick).circuit
