"""Measures of circuits, as functions of plain numbers.

=======================  ===========================================================  ================
measure                  definition                                                   source
=======================  ===========================================================  ================
true / false rate        |C ∩ T| / |T| and |C \\ T| / |E \\ T|                          ACDC [1]
ROC AUC                  area under the rates of all cut-offs of |score|, ties as one  scikit-learn
pessimistic ROC AUC      ∫ max {true rate : false rate ≤ x} dx over circuits given     ACDC [1]
faithfulness             (m(C) - m(∅)) / (m(full) - m(∅))                             IOI, MIB [2, 3]
completeness             1 - faithfulness of the complement E \\ C                     [4]
CPR                      ∫ faithfulness d(size / |E|), larger is better               MIB [3]
CMD                      ∫ |1 - faithfulness| d(size / |E|), smaller is better        MIB [3]
Jaccard                  |A ∩ B| / |A ∪ B|, 1 for two empty circuits
=======================  ===========================================================  ================

C is a circuit, T the published one, E all edges. m grows with the behaviour: the logit difference, as in
MIB, or minus the loss, which searches keep low. m(∅) is m with every edge patched. MIB measures circuits
of ten fixed sizes, from 0.1 % of the edges on. Here curves run from no edge to all edges, where
faithfulness is 0 and 1 by definition, and are straight between the sizes measured.

[1] Conmy et al. 2023, arXiv 2304.14997. [2] Wang et al. 2022, arXiv 2211.00593.
[3] Mueller et al. 2025, arXiv 2504.13151. [4] Marks et al. 2024, arXiv 2403.19647.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from sklearn.metrics import roc_auc_score, roc_curve

Point = tuple[float, float]

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Means over prompts, ``[draw, value]`` -> one number per draw, ``[draw]``."""

Group = tuple[NDArray[np.float64], Statistic]
"""Values measured with one seed, ``[prompt, value]``, and the statistic of their means."""

CONFIDENCE = 0.95
RESAMPLES = 1000


def rates(circuit: Collection[Any], true_edges: Collection[Any], n_edges: int) -> Point:
    """Return the false and the true positive rate of a circuit, in that order.

    The published circuit must be neither empty nor all ``n_edges`` edges of the model.
    """
    true = set(true_edges)
    right = len(true & set(circuit))
    return (len(set(circuit)) - right) / (n_edges - len(true)), right / len(true)


def roc_points(scores: ArrayLike, truth: ArrayLike) -> list[Point]:
    """Return false and true positive rate at every cut-off of |score|, from (0, 0) to (1, 1).

    ``scores`` is ``[edge]``; ``truth``, ``[edge]``, says whether each is in the published circuit.
    """
    # Keep points on a straight line: under a staircase they add area.
    false, true, _ = roc_curve(np.asarray(truth), np.abs(scores), drop_intermediate=False)
    return list(zip(false.tolist(), true.tolist(), strict=True))


def roc_auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return the area under `roc_points`: the chance that a published edge ranks above another edge."""
    return float(roc_auc_score(np.asarray(truth), np.abs(scores)))


def pessimistic_auc(points: Iterable[Point]) -> float:
    """Return the area under the staircase that rises only where a circuit was measured.

    A search yields one circuit per threshold, not a ranking, and nothing is assumed between them: at a
    false positive rate x the staircase has the best true positive rate of the circuits with at most x.
    Points are (false, true) positive rates in any order; (1, 1) adds nothing.
    """
    area = best = 0.0
    for false, true in sorted(points):
        area += (1 - false) * max(0.0, true - best)
        best = max(best, true)
    return area


def faithfulness(value: ArrayLike, empty: ArrayLike, full: ArrayLike) -> Any:
    """Return ``(value - empty) / (full - empty)``: 0 with every edge patched, 1 for the whole model.

    Arrays are broadcast. NaN where ``full`` equals ``empty``.
    """
    value, empty, full = (np.asarray(x, dtype=float) for x in (value, empty, full))
    span = full - empty
    return (value - empty) / np.where(span == 0, np.nan, span)


def completeness(complement: ArrayLike, empty: ArrayLike, full: ArrayLike) -> Any:
    """Return 1 if none of the behaviour is outside the circuit, 0 if all of it is.

    ``complement`` is m with the circuit's own edges patched and all others kept.
    """
    return 1 - faithfulness(complement, empty, full)


def curve(
    sizes: Sequence[int], values: ArrayLike, n_edges: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return faithfulness against share of edges, from (0, 0) to (1, 1), by ascending size.

    From ``sizes``, ``[circuit]``, and their faithfulness, ``[..., circuit]``, to ``[point]`` and
    ``[..., point]``. Circuits of equal size are averaged into one point.
    """
    given = np.asarray(values, dtype=float)
    columns = {0: np.zeros(given.shape[:-1]), n_edges: np.ones(given.shape[:-1])}
    for size in set(sizes) - columns.keys():
        columns[size] = given[..., [i for i, s in enumerate(sizes) if s == size]].mean(axis=-1)
    x = np.array(sorted(columns))
    return x / n_edges, np.stack([columns[size] for size in x], axis=-1)


def cpr(x: ArrayLike, y: ArrayLike) -> Any:
    """Return the circuit performance ratio, ``[...]``: the area under curves ``[..., point]``."""
    return trapezoid(np.asarray(y), np.asarray(x), axis=-1)


def cmd(x: ArrayLike, y: ArrayLike) -> Any:
    """Return the circuit-model distance: area between faithfulness curves and 1, ``[...]``.

    ``y`` is ``[..., point]``. A segment that crosses 1 encloses two triangles.
    """
    off = 1 - np.asarray(y)
    a, b = off[..., :-1], off[..., 1:]
    both = np.abs(a) + np.abs(b)
    crossing = (a**2 + b**2) / np.where(both > 0, both, 1)
    return (np.diff(x) * np.where(a * b < 0, crossing, both) / 2).sum(axis=-1)


def jaccard(a: Collection[Any], b: Collection[Any]) -> float:
    """Return the size of the intersection over that of the union; 1 for two empty sets."""
    union = set(a) | set(b)
    return len(set(a) & set(b)) / len(union) if union else 1.0


def mean_pairwise_jaccard(circuits: Sequence[Collection[Any]]) -> float:
    """Return the mean Jaccard index over all pairs; NaN for fewer than two circuits."""
    pairs = [jaccard(a, b) for i, a in enumerate(circuits) for b in circuits[:i]]
    return float(np.mean(pairs)) if pairs else float("nan")


def bootstrap(groups: Sequence[Group], seed: int = 0, resamples: int = RESAMPLES) -> Point:
    """Return a percentile interval of a statistic's mean over seeds (a two-stage bootstrap).

    Each resample draws seeds with replacement and, within each, its prompts with replacement, and
    averages the statistics of the seeds (Davison & Hinkley 1997, section 3.8). With one seed only
    prompts are drawn; with few seeds the interval says little about other seeds.

    Returns the lower and upper end at `CONFIDENCE`; NaN if the statistic is always NaN.
    """
    rng = np.random.default_rng(seed)
    draws = resamples * len(groups)
    table = np.stack([_drawn(rng, values, statistic, draws) for values, statistic in groups])
    chosen = rng.integers(len(groups), size=draws)
    means = table[chosen, np.arange(draws)].reshape(resamples, len(groups)).mean(axis=1)
    means = means[~np.isnan(means)]
    if not len(means):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _drawn(
    rng: np.random.Generator, values: NDArray[np.float64], statistic: Statistic, draws: int
) -> NDArray[np.float64]:
    """Return the statistic of resampled prompts, ``[draw]``.

    The mean over a resample is a mean weighted by how often each prompt was drawn.
    """
    prompts = len(values)
    weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws) / prompts
    return statistic(weights @ values)
