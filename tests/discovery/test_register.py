"""Our methods in the host's tables, and their scores in the host's own tools (acceptance A2)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from auto_circuit.metrics.official_circuits.measure_roc import measure_task_roc
from auto_circuit.metrics.prune_metrics.measure_prune_metrics import measure_prune_metrics
from auto_circuit.metrics.prune_metrics.prune_metrics import (
    ANSWER_LOGIT_METRIC,
    CLEAN_KL_DIV_METRIC,
    LOGIT_DIFF_METRIC,
)
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos import prune_algos
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT, PRUNE_ALGOS, run_prune_algos
from auto_circuit.types import AblationType, Edge, PatchType, PruneScores
from auto_circuit.utils.graph_utils import edge_counts_util
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.discovery.register import THRESHOLDS, attribution_scores, threshold_scores
from pahq_plugin.errors import ConfigError
from tests.helpers.replay import cleared_masks, sequential_acdc
from tests.helpers.small import loader, small_model

OWN = ["pahq", "pahq-paper", "rtn-q", "acdc", "eactp", "eap", "eap-ig", "eap-ig-activations"]


@pytest.fixture(scope="module")
def xproportion() -> pahq.Problem:
    return pahq.load_problem("tracr-xproportion")


@pytest.fixture(scope="module")
def ioi() -> pahq.Problem:
    return pahq.load_problem("ioi")


def test_registering_twice_enters_each_method_once() -> None:
    listed, entered = list(PRUNE_ALGOS), dict(PRUNE_ALGO_DICT)
    pahq.register()
    first = {name: PRUNE_ALGO_DICT[name] for name in OWN}
    pahq.register()
    assert {name: PRUNE_ALGO_DICT[name] for name in OWN} == first
    assert all(PRUNE_ALGO_DICT[name] is algorithm for name, algorithm in first.items())
    assert [algorithm.key for algorithm in PRUNE_ALGOS] == [a.key for a in listed] + OWN
    assert list(PRUNE_ALGO_DICT) == list(entered) + OWN
    for name in OWN:
        assert PRUNE_ALGO_DICT[name].key == name
        assert sum(algorithm.key == name for algorithm in PRUNE_ALGOS) == 1
        assert PRUNE_ALGO_DICT[name].short_name


def test_importing_alone_enters_nothing() -> None:
    code = """if True:
        from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT, PRUNE_ALGOS
        before = list(PRUNE_ALGO_DICT)
        import pahq_plugin
        from pahq_plugin import cli, problems
        from pahq_plugin.discovery import methods, register
        pahq_plugin.methods()
        assert list(PRUNE_ALGO_DICT) == before == [algo.key for algo in PRUNE_ALGOS]
        pahq_plugin.register()
        assert len(PRUNE_ALGO_DICT) == len(PRUNE_ALGOS) == len(before) + 8
        """
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )


def test_a_key_that_is_taken_is_left_alone() -> None:
    mine = dataclasses.replace(prune_algos.RANDOM_PRUNE_ALGO, key="pahq")
    PRUNE_ALGO_DICT["pahq"] = mine
    pahq.register()
    assert PRUNE_ALGO_DICT["pahq"] is mine


def by_edge(model: PatchableModel, scores: PruneScores) -> dict[Edge, float]:
    return {edge: edge.prune_score(scores).item() for edge in model.edges}


@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_a_score_is_the_smallest_threshold_that_removes(method: str) -> None:
    model, prompts = small_model(n_heads=2), loader()
    thresholds = (0.1, 0.01, 0.03)
    scores = by_edge(model, threshold_scores(model, prompts, method=method, thresholds=thresholds))
    expected = dict.fromkeys(model.edges, 1.0)
    for threshold in sorted(thresholds, reverse=True):
        for decision in sequential_acdc(model, prompts, threshold=threshold):
            if not decision.kept:
                expected[decision.edge] = threshold
    assert scores == pytest.approx(expected)
    assert set(expected.values()) == {0.01, 0.03, 0.1, 1.0}


def test_the_order_of_thresholds_does_not_count() -> None:
    model, prompts = small_model(n_heads=2), loader()
    results = [
        by_edge(model, threshold_scores(model, prompts, method="acdc", thresholds=thresholds))
        for thresholds in ((0.1, 0.01, 0.03), (0.03, 0.1, 0.01), [0.01, 0.03, 0.1, 0.1])
    ]
    assert results[0] == results[1] == results[2]


def test_no_threshold_is_an_error() -> None:
    with pytest.raises(ConfigError, match="thresholds"):
        threshold_scores(small_model(), loader(), thresholds=())
    with pytest.raises(ConfigError, match="threshold=0"):
        threshold_scores(small_model(), loader(), thresholds=(0.1, 0))


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations"])
def test_attribution_scores_read_the_whole_loader(method: str) -> None:
    model = small_model(n_heads=2)
    prompts = loader(prompts=8)
    two = type(prompts)(prompts.dataset, seq_len=None, diverge_idx=0, batch_size=4)
    scores = by_edge(model, attribution_scores(model, two, method=method))
    whole = pahq.discover(model, two, method=method, batches=None, progress=False)
    part = pahq.discover(model, two, method=method, batches=1, progress=False)
    assert scores == {d.edge: d.effect for d in whole.decisions}
    assert scores != {d.edge: d.effect for d in part.decisions}


def patched_edges(model: PatchableModel) -> set[Edge]:
    return {edge for edge in model.edges if edge.patch_mask(model)[edge.patch_idx] != 0}


def counts(problem: pahq.Problem, scores: PruneScores) -> list[int]:
    return edge_counts_util(problem.model.edges, prune_scores=scores)


def test_the_host_runs_the_registered_method(xproportion: pahq.Problem) -> None:
    """From `run_prune_algos` to every measurement, with nothing of ours in between."""
    pahq.register()
    problem, task = xproportion, xproportion.task
    found = run_prune_algos([task], [PRUNE_ALGO_DICT["pahq"], PRUNE_ALGO_DICT["acdc"]])
    scores = found[task.key]["pahq"]
    values = by_edge(problem.model, scores)
    possible = [*THRESHOLDS, 10 * max(THRESHOLDS)]
    assert all(any(v == pytest.approx(t) for t in possible) for v in values.values())
    kept = sum(value > max(THRESHOLDS) for value in values.values())
    assert 0 < kept < len(values)
    for name, mask in found[task.key]["acdc"].items():
        assert torch.equal(mask, scores[name])

    assert problem.true_edges is not None
    points = measure_task_roc(task.model, problem.true_edges, scores)
    assert points[0] == (0, 0) and points[-1] == (1, 1)
    assert max(true - false for false, true in points) > 0.5

    with cleared_masks(task.model):
        outputs = run_circuits(
            task.model, task.test_loader, counts(problem, scores), scores, PatchType.TREE_PATCH
        )
    assert kept in outputs and all(len(each) == len(task.test_loader) for each in outputs.values())


def test_the_hosts_metrics_take_the_scores(ioi: pahq.Problem) -> None:
    """KL and answer metrics: the circuit beats as many random edges."""
    pahq.register()
    task = ioi.task
    result = pahq.discover(ioi.model, ioi.train_loader, threshold=0.1, progress=False)
    n = len(result.circuit)
    random_scores = PRUNE_ALGO_DICT["Random"].func(task.model, task.train_loader, None)
    scores = {task.key: {"pahq": result.prune_scores, "Random": random_scores}}
    metrics = [CLEAN_KL_DIV_METRIC, ANSWER_LOGIT_METRIC, LOGIT_DIFF_METRIC]
    with cleared_masks(task.model):
        found = measure_prune_metrics(
            [AblationType.RESAMPLE], metrics, scores, PatchType.TREE_PATCH, test_edge_counts=[n]
        )[AblationType.RESAMPLE]
    values = {
        metric.key: {name: dict(points)[n] for name, points in found[metric.key][task.key].items()}
        for metric in metrics
    }
    kl, difference = values[CLEAN_KL_DIV_METRIC.key], values[LOGIT_DIFF_METRIC.key]
    assert kl["pahq"] < kl["Random"] / 2
    assert difference["pahq"] > difference["Random"]
    assert values[ANSWER_LOGIT_METRIC.key]["pahq"] > values[ANSWER_LOGIT_METRIC.key]["Random"]


def test_the_host_sweeps_thresholds_on_a_language_task(ioi: pahq.Problem) -> None:
    task, thresholds = ioi.task, (0.03, 0.1)
    algorithms = [
        prune_algos.PruneAlgo(name, name, partial(threshold_scores, method=name, thresholds=thresholds))
        for name in ("pahq", "acdc")
    ]
    found = run_prune_algos([task], algorithms)[task.key]
    values = by_edge(ioi.model, found["pahq"])
    assert {round(value, 6) for value in values.values()} == {0.03, 0.1, 1.0}
    assert values == by_edge(ioi.model, found["acdc"])


@pytest.mark.parametrize("name", ["ioi", "tracr-xproportion"])
def test_run_circuits_runs_exactly_the_circuit(name: str, request: pytest.FixtureRequest) -> None:
    problem = request.getfixturevalue("ioi" if name == "ioi" else "xproportion")
    threshold = 0.1 if name == "ioi" else 0.01
    for method in ("pahq", "acdc"):
        result = pahq.discover(
            problem.model, problem.train_loader, method=method, threshold=threshold, progress=False
        )
        assert 0.02 <= len(result.circuit) / len(result.decisions) <= 0.6
        n = len(result.circuit)
        with cleared_masks(problem.model):
            outputs = run_circuits(
                problem.task.model, problem.task.test_loader, [n], result.prune_scores,
                PatchType.TREE_PATCH,
            )  # fmt: skip
            assert list(outputs) == [n]
            assert patched_edges(problem.model) == problem.model.edges - result.circuit
