"""Summary tables: one row per problem and method, and the effect of precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pandas as pd

from pahq_plugin.compare import measures
from pahq_plugin.compare.baselines import EXACT, get_baseline
from pahq_plugin.compare.tables import Finding, Judged, Material
from pahq_plugin.discovery.scores import UNREMOVED
from pahq_plugin.labels import ends, kind_of
from pahq_plugin.results.decision import SavedEdge

TOP_HEADS = 5


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval."""

    mean: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """Return the estimate as three columns of a table."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def estimate(groups: Sequence[measures.Group]) -> Estimate:
    """Return a statistic's mean over seeds, with a bootstrap interval."""
    means = [float(statistic(values.mean(axis=0)[None])[0]) for values, statistic in groups]
    return Estimate(float(np.mean(means)), *measures.bootstrap(groups))


def over_seeds(values: Iterable[float]) -> Estimate:
    """Return the mean of one number per seed, with a bootstrap interval."""
    return estimate([(np.array([[value]]), lambda means: means[:, 0]) for value in values])


def summary(material: Material) -> pd.DataFrame:
    """Return one row per problem and method, over all thresholds and seeds.

    ======================  ====================================================================
    column                  meaning
    ======================  ====================================================================
    searches, thresholds    their numbers
    roc_auc                 of the ranking; a search ranks by the smallest threshold that removes
    pessimistic_auc         of the circuits, one per threshold or cut-off
    cpr_*, cmd_*            areas of the faithfulness curve, held-out prompts
    seed_stability          mean Jaccard index between seeds, at each threshold
    threshold_stability     mean Jaccard index of circuits at neighbouring thresholds
    differing, decisions    edges that only this search or only the FP32 one keeps; out of how many
    ======================  ====================================================================

    ``_low`` and ``_high`` are the ends of 95 % intervals.
    """
    rows = []
    for (problem, method), findings in _by_problem_and_method(material.findings):
        judged = [j for j in material.judged if _is_of(j, problem, method)]
        rows.append(
            {
                "problem": problem,
                "method": method,
                "searches": len(findings),
                "thresholds": len({f.search.threshold for f in findings}),
                "edges": findings[0].edges,
                **_roc_columns(findings, material.true_edges.get(problem)),
                **_area_columns(judged),
                **_stability(findings),
                **_differing(findings, material),
            }
        )
    return pd.DataFrame(rows)


def _by_problem_and_method(
    findings: Sequence[Finding],
) -> list[tuple[tuple[str, str], list[Finding]]]:
    """Group findings by problem and method, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.search.problem.label, finding.search.method)
        groups.setdefault(key, []).append(finding)
    return list(groups.items())


def _is_of(judged: Judged, problem: str, method: str) -> bool:
    return (judged.record["problem"], judged.record["method"]) == (problem, method)


def by_seed(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Group findings by seed, thresholds ascending."""
    ordered = sorted(findings, key=lambda f: (f.search.seed, f.search.threshold or 0))
    return [list(group) for _, group in groupby(ordered, key=lambda f: f.search.seed)]


def ranking_scores(findings: Sequence[Finding]) -> dict[SavedEdge, float]:
    """Return a score for every edge, from one seed's searches.

    For a search, as in `pahq_plugin.discovery.register`: the smallest threshold that removes the edge,
    or ten times the largest if none does.
    """
    if not get_baseline(findings[0].search.method).sweeps:
        return {name: abs(score) for name, score in findings[0].scores.items()}
    thresholds = [finding.search.threshold or 0.0 for finding in findings]
    scores = dict.fromkeys(findings[0].scores, UNREMOVED * max(thresholds))
    for finding in sorted(findings, key=lambda f: -(f.search.threshold or 0)):
        removed = scores.keys() - finding.circuit
        scores |= dict.fromkeys(removed, finding.search.threshold or 0.0)
    return scores


def roc(findings: Sequence[Finding], true: frozenset[SavedEdge]) -> list[measures.Point]:
    """Return the ROC points of one seed: a circuit per threshold, or every cut-off of a ranking."""
    if get_baseline(findings[0].search.method).sweeps:
        return sorted(measures.rates(f.circuit, true, f.edges) for f in findings)
    scores = ranking_scores(findings)
    return measures.roc_points(list(scores.values()), [name in true for name in scores])


def _roc_columns(findings: Sequence[Finding], true: frozenset[SavedEdge] | None) -> dict[str, Any]:
    if true is None:
        return {}
    areas, pessimistic = [], []
    for group in by_seed(findings):
        scores = ranking_scores(group)
        areas.append(measures.roc_auc(list(scores.values()), [name in true for name in scores]))
        pessimistic.append(measures.pessimistic_auc(roc(group, true)))
    return over_seeds(areas).columns("roc_auc") | over_seeds(pessimistic).columns("pessimistic_auc")


def _area_columns(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return CPR and CMD; every resample of the prompts has its own curve."""
    if not judged:
        return {}
    columns: dict[str, Any] = {}
    for behaviour in judged[0].behaviours:
        for name, area in (("cpr", measures.cpr), ("cmd", measures.cmd)):
            groups = [curve_group(j, behaviour, area) for j in judged]
            columns |= estimate(groups).columns(f"{name}_{behaviour}")
    return columns


def curve_group(judged: Judged, behaviour: str, area: Any) -> measures.Group:
    """Return one seed's values per prompt, and the statistic: the area of the mean curve."""
    circuits = judged.record["circuits"]
    sizes, n_edges = [circuit["size"] for circuit in circuits], judged.record["edges"]
    rows = [judged.record["empty"], judged.record["whole"], *(c["inside"] for c in circuits)]
    values = np.stack([judged.behaviour(behaviour, row) for row in rows], axis=1)  # [prompt, value]

    def statistic(means: Any) -> Any:
        faithful = measures.faithfulness(means[:, 2:], means[:, 0:1], means[:, 1:2])
        return area(*measures.curve(sizes, faithful, n_edges))

    return values, statistic


def _stability(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the agreement of a method with itself, between seeds and between thresholds."""
    if not get_baseline(findings[0].search.method).sweeps:
        return {}
    thresholds = sorted({f.search.threshold for f in findings if f.search.threshold})
    between_seeds = [
        measures.mean_pairwise_jaccard([f.circuit for f in findings if f.search.threshold == t])
        for t in thresholds
    ]
    neighbours = [
        measures.jaccard(a.circuit, b.circuit) for group in by_seed(findings) for a, b in pairwise(group)
    ]
    return {"seed_stability": _mean(between_seeds), "threshold_stability": _mean(neighbours)}


def _differing(findings: Sequence[Finding], material: Material) -> dict[str, Any]:
    """Count decisions that differ from those in FP32, over all thresholds and seeds."""
    pairs = [
        (finding, exact)
        for finding in findings
        if get_baseline(finding.search.method).sweeps
        and (exact := material.exact_for(finding.search)) is not None
    ]
    if not pairs:
        return {}
    return {
        "differing": sum(len(finding.circuit ^ exact.circuit) for finding, exact in pairs),
        "decisions": sum(finding.edges for finding, _ in pairs),
    }


def at_threshold(material: Material, threshold: float) -> pd.DataFrame:
    """Return one row per problem and method: the circuits at one threshold, on held-out prompts.

    Rankings are cut at the size of the FP32 search's circuit. Intervals are over prompts and seeds.
    """
    rows = []
    keys = dict.fromkeys((j.record["problem"], j.record["method"]) for j in material.judged)
    for problem, method in keys:
        pairs = [
            (judged, circuit)
            for judged in material.judged
            if _is_of(judged, problem, method)
            for circuit in judged.record["circuits"]
            if circuit["threshold"] == threshold
        ]
        if pairs:
            rows.append(
                {"problem": problem, "method": method, "threshold": threshold} | _circuit_columns(pairs)
            )
    return pd.DataFrame(rows)


def _circuit_columns(pairs: Sequence[tuple[Judged, dict[str, Any]]]) -> dict[str, Any]:
    columns: dict[str, Any] = {"size": float(np.mean([circuit["size"] for _, circuit in pairs]))}
    for index, name in enumerate(pairs[0][0].record["measures"]):
        shown = "accuracy" if name == "correct" else name
        columns |= estimate([_column_group(circuit["inside"], index) for _, circuit in pairs]).columns(
            shown
        )
    for behaviour in pairs[0][0].behaviours:
        for name, side in (("faithfulness", "inside"), ("completeness", "outside")):
            groups = [_share_group(judged, behaviour, circuit, side) for judged, circuit in pairs]
            columns |= estimate(groups).columns(f"{name}_{behaviour}")
    return columns


def _column_group(rows: Sequence[Sequence[float]], index: int) -> measures.Group:
    return np.array(rows)[:, index : index + 1], lambda means: means[:, 0]


def _share_group(
    judged: Judged, behaviour: str, circuit: Mapping[str, Any], side: str
) -> measures.Group:
    rows = [judged.record["empty"], judged.record["whole"], circuit[side]]
    values = np.stack([judged.behaviour(behaviour, r) for r in rows], axis=1)
    measure = measures.faithfulness if side == "inside" else measures.completeness
    return values, lambda means: measure(means[:, 2], means[:, 0], means[:, 1])


def precision_study(material: Material) -> pd.DataFrame:
    """Return the effect of precision on the conclusions: one row per format, problem and threshold.

    Every method that sweeps is compared with the FP32 search of the same problem, threshold and seed.

    ================  ==========================================================================
    column            meaning
    ================  ==========================================================================
    differing, worst  edges that only one of the two keeps: mean and maximum over seeds
    jaccard           Jaccard index of the circuits
    heads_lost        heads with a kept edge in FP32 but none here, mean
    heads_gained      heads with a kept edge here but none in FP32, mean
    top_heads         share of the FP32 circuit's five heads with the largest sums of outgoing
                      effects (or all, if fewer) that are among the five here; 1 if it has no head
    faithfulness_off  |faithfulness - FP32's|, in minus the loss, on held-out prompts, mean
    exact_share       share of decisions taken in FP32
    ================  ==========================================================================
    """
    faithful = {
        (j.record["problem"], j.record["method"], j.record["seed"], c["threshold"]): j.faithfulness(
            "loss", c["inside"]
        )
        for j in material.judged
        for c in j.record["circuits"]
    }
    rows = []
    for finding in material.findings:
        search = finding.search
        exact = material.exact_for(search)
        if not get_baseline(search.method).sweeps or exact is None or search.method == EXACT:
            continue
        ours, theirs = heads(finding.circuit), heads(exact.circuit)
        key = (search.problem.label, search.method, search.seed, search.threshold)
        reference = (key[0], EXACT, *key[2:])
        off = abs(faithful.get(key, np.nan) - faithful.get(reference, np.nan))
        rows.append(
            {
                "problem": key[0],
                "method": key[1],
                "threshold": search.threshold,
                "differing": len(finding.circuit ^ exact.circuit),
                "jaccard": measures.jaccard(finding.circuit, exact.circuit),
                "heads_lost": len(theirs - ours),
                "heads_gained": len(ours - theirs),
                "top_heads": share_of(top_heads(exact), top_heads(finding)),
                "faithfulness_off": off,
                "exact_share": np.mean([d.exact for d in finding.decisions]),
            }
        )
    if not rows:
        return pd.DataFrame()
    grouped = pd.DataFrame(rows).groupby(["problem", "method", "threshold"], sort=False)
    extra = {"searches": grouped.size(), "worst": grouped["differing"].max()}
    return grouped.mean().assign(**extra).reset_index()


def share_of(wanted: set[str], given: set[str]) -> float:
    """Return the share of ``wanted`` that is in ``given``; 1 if ``wanted`` is empty."""
    return len(wanted & given) / len(wanted) if wanted else 1.0


def heads(circuit: Iterable[SavedEdge]) -> set[str]:
    """Return the attention heads with an edge in the circuit: names such as ``"A1.3"``."""
    nodes = (node for name, _ in circuit for node in ends(name)[:2])
    return {node for node in nodes if kind_of(node) == "head"}


def top_heads(finding: Finding) -> set[str]:
    """Return the `TOP_HEADS` heads with the largest sums of |effect| over kept outgoing edges."""
    sums: dict[str, float] = {}
    for name in finding.circuit:
        source = ends(name[0]).source
        if kind_of(source) == "head":
            sums[source] = sums.get(source, 0.0) + abs(finding.scores[name])
    return set(sorted(sums, key=lambda head: (-sums[head], head))[:TOP_HEADS])


def _mean(values: Sequence[float]) -> float:
    given = [value for value in values if not np.isnan(value)]
    return float(np.mean(given)) if given else float("nan")
