"""Summary tables: one row per problem and method, and the effect of precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


def estimate(name: str, groups: Sequence[measures.Group]) -> dict[str, float]:
    """Return three columns: a statistic's mean over seeds, and both ends of its bootstrap interval."""
    means = [float(statistic(values.mean(axis=0)[None])[0]) for values, statistic in groups]
    low, high = measures.bootstrap(groups)
    return {name: float(np.mean(means)), f"{name}_low": low, f"{name}_high": high}


def over_seeds(name: str, values: Iterable[float]) -> dict[str, float]:
    """Return the `estimate` of one number per seed."""
    return estimate(name, [(np.array([[value]]), _first) for value in values])


def _first(means: Any) -> Any:
    return means[:, 0]


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
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in material.findings:
        groups.setdefault((finding.search.problem.label, finding.search.method), []).append(finding)
    rows = []
    for (problem, method), findings in groups.items():
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
    return over_seeds("roc_auc", areas) | over_seeds("pessimistic_auc", pessimistic)


def _area_columns(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return CPR and CMD; every resample of the prompts has its own curve."""
    if not judged:
        return {}
    columns: dict[str, Any] = {}
    for behaviour in judged[0].behaviours:
        for name, area in (("cpr", measures.cpr), ("cmd", measures.cmd)):
            groups = [curve_group(j, behaviour, area) for j in judged]
            columns |= estimate(f"{name}_{behaviour}", groups)
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
    return {
        "seed_stability": pd.Series(between_seeds, dtype=float).mean(),
        "threshold_stability": pd.Series(neighbours, dtype=float).mean(),
    }


def _differing(findings: Sequence[Finding], material: Material) -> dict[str, Any]:
    """Count decisions that differ from those in FP32, over all thresholds and seeds."""
    pairs = [(f, exact) for f in findings if (exact := material.exact_for(f.search))]
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
        groups = [(np.array(c["inside"])[:, index : index + 1], _first) for _, c in pairs]
        columns |= estimate("accuracy" if name == "correct" else name, groups)
    for behaviour in pairs[0][0].behaviours:
        for name, side in (("faithfulness", "inside"), ("completeness", "outside")):
            groups = [_share_group(judged, behaviour, circuit, side) for judged, circuit in pairs]
            columns |= estimate(f"{name}_{behaviour}", groups)
    return columns


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
    faithful = {}
    for judged in material.judged:
        of = (judged.record["problem"], judged.record["method"], judged.record["seed"])
        for circuit in judged.record["circuits"]:
            faithful[*of, circuit["threshold"]] = judged.faithfulness("loss", circuit["inside"])
    rows = []
    for finding in material.findings:
        search = finding.search
        exact = material.exact_for(search)
        if exact is None or search.method == EXACT:
            continue
        ours, theirs = heads(finding.circuit), heads(exact.circuit)
        wanted = top_heads(exact)
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
                "top_heads": len(wanted & top_heads(finding)) / len(wanted) if wanted else 1.0,
                "faithfulness_off": off,
                "exact_share": np.mean([d.exact for d in finding.decisions]),
            }
        )
    if not rows:
        return pd.DataFrame()
    grouped = pd.DataFrame(rows).groupby(["problem", "method", "threshold"], sort=False)
    extra = {"searches": grouped.size(), "worst": grouped["differing"].max()}
    return grouped.mean().assign(**extra).reset_index()


def heads(circuit: Iterable[SavedEdge]) -> set[str]:
    """Return the attention heads with an edge in the circuit: names such as ``"A1.3"``."""
    nodes = (node for name, _ in circuit for node in ends(name)[:2])
    return {node for node in nodes if kind_of(node) == "head"}


def top_heads(finding: Finding) -> set[str]:
    """Return the `TOP_HEADS` heads with the largest sums of |effect| over kept outgoing edges."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name in finding.circuit:
        source = ends(name[0]).source
        if kind_of(source) == "head":
            sums[source] += abs(finding.scores[name])
    return set(sorted(sums, key=lambda head: (-sums[head], head))[:TOP_HEADS])
