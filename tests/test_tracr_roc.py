"""ROC AUC against the official circuits of the two Tracr problems (acceptances A6 and E3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from auto_circuit.metrics.official_circuits.measure_roc import measure_task_roc
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.types import PruneScores
from auto_circuit.utils.patchable_model import PatchableModel
from rich.console import Console
from rich.table import Table
from sklearn.metrics import auc

import pahq_plugin as pahq
from pahq_plugin.discovery.scores import UNREMOVED
from tests.helpers.replay import canonical_order

PROBLEMS = [pytest.param("tracr-reverse", marks=pytest.mark.full), "tracr-xproportion"]
SEARCHES = ["acdc", "pahq", "pahq-paper", "rtn-q"]
HOST_LOOP = "host's ACDC loop"
GRID = [base * 10.0**exponent for exponent in (-4, -3, -2) for base in (1, 2, 5)] + [0.1]
SHARE = (0.02, 0.6)

EAP = {"tracr-reverse": "eap", "tracr-xproportion": "Edge Answer Logit MSE Gradient At Clean"}
"""Answers of tracr-xproportion are values, not token ids: the host's ``mse`` variant reads those."""


@contextmanager
def canonical_edges(model: PatchableModel) -> Iterator[None]:
    """The host's loop sorts ``model.edges``, a set, stably and by layer alone."""
    edges = model.edges
    model.edges = canonical_order(model)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.edges = edges


def search(problem: pahq.Problem, method: str, threshold: float) -> pahq.Discovery:
    return pahq.discover(
        problem.model,
        problem.train_loader,
        method=method,
        threshold=threshold,
        metric=problem.metric,
        progress=False,
    )


def usable_thresholds(problem: pahq.Problem) -> list[float]:
    """Those of the grid that keep 2 to 60 % of the edges."""
    n_edges = len(problem.model.edges)
    shares = {t: len(search(problem, "acdc", t).circuit) / n_edges for t in GRID}
    return [threshold for threshold, share in shares.items() if SHARE[0] <= share <= SHARE[1]]


def swept_scores(problem: pahq.Problem, method: str, thresholds: list[float]) -> PruneScores:
    """As `pahq_plugin.discovery.register.threshold_scores`, with the problem's own metric."""
    scores = problem.model.new_prune_scores(init_val=UNREMOVED * max(thresholds))
    for threshold in sorted(thresholds, reverse=True):
        for decision in search(problem, method, threshold).decisions:
            if not decision.kept:
                scores[decision.edge.dest.module_name][decision.edge.patch_idx] = threshold
    return scores


def host_scores(problem: pahq.Problem, thresholds: list[float]) -> PruneScores:
    with canonical_edges(problem.model):
        return acdc_prune_scores(
            problem.model,
            problem.train_loader,
            None,
            tao_exps=[0],
            tao_bases=thresholds,  # type: ignore[arg-type]
            faithfulness_target=problem.metric,
        )


def area(problem: pahq.Problem, scores: PruneScores) -> float:
    assert problem.true_edges
    points = measure_task_roc(problem.model, problem.true_edges, scores)
    return float(auc([x for x, _ in points], [y for _, y in points]))


def areas(problem: pahq.Problem, thresholds: list[float]) -> dict[str, float]:
    found = {name: area(problem, swept_scores(problem, name, thresholds)) for name in SEARCHES}
    attribution = pahq.discover(
        problem.model, problem.train_loader, method=EAP[problem.name], batches=None, progress=False
    )
    found["eap"] = area(problem, attribution.prune_scores)
    found[HOST_LOOP] = area(problem, host_scores(problem, thresholds))
    known = pahq.discover(
        problem.model, problem.train_loader, method="Official Circuit", true_edges=problem.true_edges
    )
    found["the circuit itself"] = area(problem, known.prune_scores)
    return found


def show(name: str, found: dict[str, float], thresholds: list[float], official: int, edges: int) -> None:
    swept = f"{len(thresholds)} thresholds {min(thresholds):g} to {max(thresholds):g}"
    table = Table(title=f"ROC AUC against the official circuit of {name}")
    table.add_column("method")
    table.add_column(f"{official} of {edges} edges\n{swept}", justify="right")
    for method, value in found.items():
        table.add_row(method, f"{value:.4f}")
    Console(width=110).print(table)


@pytest.mark.parametrize("name", PROBLEMS)
def test_areas(name: str) -> None:
    problem = pahq.load_problem(name)
    thresholds = usable_thresholds(problem)
    found = areas(problem, thresholds)
    show(name, found, thresholds, len(problem.true_edges or ()), len(problem.model.edges))
    assert len(thresholds) >= 5
    assert found["pahq"] == found["acdc"] == found[HOST_LOOP]
    assert found["acdc"] > 0.9
    assert found["the circuit itself"] == 1.0
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.full
@pytest.mark.parametrize("name", PROBLEMS)
def test_swept_scores_are_the_hosts(name: str) -> None:
    """Edge by edge: the smallest threshold that removes it."""
    problem = pahq.load_problem(name)
    thresholds = usable_thresholds(problem)
    host = host_scores(problem, thresholds)
    for method in ("acdc", "pahq"):
        ours = swept_scores(problem, method, thresholds)
        for module, values in host.items():
            removed = values.isfinite()
            assert (ours[module][removed] == values[removed]).all(), (method, module)
            assert (ours[module][~removed] > max(thresholds)).all(), (method, module)
