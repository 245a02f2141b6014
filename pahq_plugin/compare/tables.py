"""Results of a comparison as tidy tables: one row per search, one per judged circuit.

All tables except `costs` are the same for equal plans, however often the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pahq_plugin.compare import measures
from pahq_plugin.compare.baselines import EXACT, get_baseline
from pahq_plugin.compare.files import read_judged
from pahq_plugin.compare.plan import Plan, Search
from pahq_plugin.compare.run import is_found, judgements_of
from pahq_plugin.compare.work import cost, cut
from pahq_plugin.errors import ResultError
from pahq_plugin.results.decision import Decision, SavedEdge, saved_decisions, saved_edge
from pahq_plugin.results.files import RESULT_FILE, read_record

MIB = 2**20
COSTS = ("seconds", "forward_equivalents", "evaluations", "re_evaluations")
CIRCUIT_COLUMNS = ["problem", "method", "threshold", "seed", "size", "share", "metric", "loss"]
"""Columns that `circuits` always has."""

BEHAVIOURS = ("loss", "logit_diff")
"""Measures that faithfulness is stated in: the loss that searches keep low, and MIB's measure."""


@dataclass(frozen=True)
class Finding:
    """The result of one search.

    Attributes:
        search: what was run.
        record: content of its ``result.json``.
        cost: its stats and the content of its ``search.json``.
    """

    search: Search
    record: Mapping[str, Any]
    cost: Mapping[str, Any]

    @cached_property
    def decisions(self) -> list[Decision]:
        """One per edge, in the order taken."""
        return saved_decisions(self.record)

    @cached_property
    def circuit(self) -> frozenset[SavedEdge]:
        """The kept edges."""
        return frozenset(saved_edge(d.edge) for d in self.decisions if d.kept)

    @cached_property
    def scores(self) -> dict[SavedEdge, float]:
        """Effect or score of every edge."""
        return {saved_edge(d.edge): d.effect for d in self.decisions}

    @property
    def edges(self) -> int:
        """Number of edges of the model."""
        return len(self.decisions)


@dataclass(frozen=True)
class Judged:
    """Circuits of one method on held-out prompts, see `pahq_plugin.compare.work.judge`."""

    record: Mapping[str, Any]

    @property
    def behaviours(self) -> list[str]:
        """Those of `BEHAVIOURS` that were measured."""
        return [name for name in BEHAVIOURS if name in self.record["measures"]]

    def behaviour(self, name: str, rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Return the behaviour of each prompt, ``[prompt]``; larger means more of it."""
        column = np.array(rows)[:, self.record["measures"].index(name)]
        return -column if name == "loss" else column

    def faithfulness(self, name: str, rows: Sequence[Sequence[float]]) -> float:
        """Return the faithfulness of a circuit's ``[prompt, measure]``, in one of `behaviours`."""
        measured = (rows, self.record["empty"], self.record["whole"])
        return float(measures.faithfulness(*(self.behaviour(name, r).mean() for r in measured)))


@dataclass(frozen=True)
class Material:
    """All results that tables are made of."""

    findings: tuple[Finding, ...]
    judged: tuple[Judged, ...]

    def exact_for(self, search: Search) -> Finding | None:
        """Return the FP32 search with the same prompts, threshold and ablation, if there is one."""
        return self._exact.get(_task(search))

    @cached_property
    def _exact(self) -> dict[tuple[Any, ...], Finding]:
        return {_task(f.search): f for f in self.findings if f.search.method == EXACT}

    def cut_at(self, finding: Finding, threshold: float) -> frozenset[SavedEdge] | None:
        """Return a ranking's edges, cut at the size of the FP32 circuit; ``None`` for a search."""
        search = finding.search
        if get_baseline(search.method).sweeps:
            return None
        exact = self.exact_for(replace(search, threshold=threshold))
        if exact is None:
            return finding.circuit
        return frozenset(cut(finding.decisions, len(exact.circuit)))

    @cached_property
    def true_edges(self) -> dict[str, frozenset[SavedEdge]]:
        """Problem label -> published circuit, where known."""
        return {
            judged.record["problem"]: frozenset(SavedEdge(n, p) for n, p in judged.record["true_edges"])
            for judged in self.judged
            if judged.record["true_edges"] is not None
        }


def _task(search: Search) -> tuple[Any, ...]:
    """Return the settings of a search without its method."""
    return search.problem, search.threshold, search.seed, search.batches, search.ablation


def read_material(plan: Plan, folder: Path) -> Material:
    """Read all results in a comparison's folder.

    Raises:
        ResultError: a file is damaged; the message says which one to delete.
    """
    found, judged = folder / "found", folder / "judged"
    findings = tuple(_finding(s, found / s.folder) for s in plan.searches if is_found(s, found))
    files = {judged / judgement.file: judgement for judgement in judgements_of(plan, found)}
    judgements = (Judged(read_judged(file, j.about)) for file, j in files.items() if file.is_file())
    return Material(findings, tuple(judgements))


def _finding(search: Search, folder: Path) -> Finding:
    try:
        return Finding(search, read_record(folder / RESULT_FILE), cost(folder))
    except ResultError as error:
        raise ResultError(f"{error}; delete {folder} and run again") from error


def searches(material: Material) -> pd.DataFrame:
    """Return one row per search: what it kept, compared with the FP32 search and the published circuit.

    ``differing`` counts edges that only one of the two keeps; ``exact_share`` is the share of decisions
    taken in FP32. Methods that rank edges have neither.
    """
    return pd.DataFrame([_search_row(finding, material) for finding in material.findings])


def _search_row(finding: Finding, material: Material) -> dict[str, Any]:
    search, circuit = finding.search, finding.circuit
    sweeps = get_baseline(search.method).sweeps
    exact = material.exact_for(search)
    true = material.true_edges.get(search.problem.label)
    rates = measures.rates(circuit, true, finding.edges) if true and sweeps else (None, None)
    return {
        **_keys(search),
        "edges": finding.edges,
        "kept": len(circuit),
        "differing": len(circuit ^ exact.circuit) if exact else None,
        "jaccard": measures.jaccard(circuit, exact.circuit) if exact else None,
        "exact_share": np.mean([d.exact for d in finding.decisions]) if sweeps else None,
        "false_rate": rates[0],
        "true_rate": rates[1],
    }


def costs(material: Material) -> pd.DataFrame:
    """Return one row per search: its cost."""
    rows = []
    for finding in material.findings:
        spent = finding.cost
        row = _keys(finding.search) | {name: spent[name] for name in COSTS}
        row |= {"extra_mib": spent["extra_bytes"] / MIB, "peak_mib": spent["peak_bytes"] / MIB}
        rows.append(row)
    return pd.DataFrame(rows)


def circuits(material: Material) -> pd.DataFrame:
    """Return one row per judged circuit, averaged over held-out prompts.

    Faithfulness and completeness are stated in minus the loss and in the logit difference. A ranking's
    row with a threshold is its circuit of the same size as the FP32 search's at that threshold.
    """
    rows = []
    for judged in material.judged:
        record = judged.record
        for circuit in record["circuits"]:
            means = np.array(circuit["inside"]).mean(axis=0)
            outside = circuit.get("outside")
            rows.append(
                {
                    "problem": record["problem"],
                    "method": record["method"],
                    "threshold": circuit["threshold"],
                    "seed": record["seed"],
                    "size": circuit["size"],
                    "share": circuit["size"] / record["edges"],
                    "metric": record["metric"],
                    "loss": means[0],
                    "logit_diff": means[1] if len(means) > 1 else None,
                    "accuracy": means[2] if len(means) > 1 else None,
                    **{
                        f"faithfulness_{name}": judged.faithfulness(name, circuit["inside"])
                        for name in judged.behaviours
                    },
                    **{
                        f"completeness_{name}": 1 - judged.faithfulness(name, outside)
                        for name in judged.behaviours
                        if outside
                    },
                }
            )
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=CIRCUIT_COLUMNS)


def _keys(search: Search) -> dict[str, Any]:
    return {
        "problem": search.problem.label,
        "method": search.method,
        "threshold": search.threshold,
        "seed": search.seed,
    }
