"""A model of what a search costs, fitted to measured ones, that says what larger ones would cost.

1. *How much there is to do.* For each edge a search recomputes a cone: some nodes of the graph. With
   as many kept edges for each node a cone has about as many nodes in a large graph as in a small one.
   So for each of the quantities counted (rows; multiply-adds of the blocks; bytes written; operations)
   ``log(quantity / edges / unit) = a + g log(kept per node) + d log(nodes) + t log(length)``, where the
   unit is what one node takes of a whole forward (1 for rows and operations). ``d = 0`` is a cone of a
   fixed number of nodes, ``d = 1`` one that is a fixed part of the model; ``t = 0`` one at all
   positions, ``t = -1`` one at a fixed number of them, such as the last. More than the whole model for
   each edge is cut off.
2. *How long that takes.* ``seconds = products / rate + int8 products / rate + bytes / rate +
   operations * overhead``, rates by least squares of relative errors, none negative. The products of
   the logits, of which every row takes as many, are added to those of the blocks.

The error is that of rows which the fit has not seen: each axis left out in turn, and the search that
took longest. Intervals come from fits to resampled rows, with such an error on top, and are widened by
what the model gets wrong of earlier, larger searches (`benchmarks.scale.check`). Whether it holds a
thousand times further out than anything measured they cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from benchmarks.scale.shapes import Shape

Floats = NDArray[np.float64]

QUANTITIES = ("rows", "products", "bytes", "operations")
COSTS = ("products", "int8_products", "bytes", "operations")
LEAST = 5
"""Searches that a fit needs."""

RESAMPLED = 300
INTERVAL = (5, 95)
"""Percentiles."""


@dataclass(frozen=True)
class Observation:
    """A measured search.

    Attributes:
        axis: what varies in the group of shapes that it belongs to.
        shape: of model and prompts.
        per_node: edges kept for each node.
        counts: by name of `QUANTITIES`, ``products`` with those of the logits, and ``int8_products``.
        cpu_seconds: of the search.
    """

    axis: str
    shape: Shape
    per_node: float
    counts: dict[str, float]
    cpu_seconds: float

    @property
    def costs(self) -> Floats:
        """What time is spent on, by `COSTS`."""
        counts = self.counts
        plain = counts["products"] - counts["int8_products"]
        return np.array([plain, counts["int8_products"], counts["bytes"], counts["operations"]], float)

    def quantity(self, name: str) -> float:
        """One of `QUANTITIES`, products without those of the logits."""
        if name != "products":
            return self.counts[name]
        logits = self.counts["rows"] * self.shape.unembedding_products
        return max(self.counts["products"] - logits, 0.01 * self.counts["products"])


@dataclass(frozen=True)
class Law:
    """``log(quantity / edges / unit) = constant + density log(kept per node) + size log(nodes) +
    length log(length)``."""

    constant: float
    density: float
    size: float
    length: float

    def per_edge(self, shape: Shape, per_node: float) -> float:
        """In units, for each edge."""
        exponents = self.density, self.size, self.length
        return math.exp(
            self.constant + sum(e * x for e, x in zip(exponents, _logs(shape, per_node), strict=True))
        )


def _logs(shape: Shape, per_node: float) -> list[float]:
    """What a law depends on."""
    return [math.log(per_node), math.log(shape.nodes), math.log(shape.length)]


@dataclass(frozen=True)
class CostModel:
    """See the module's docstring.

    Attributes:
        laws: by name of `QUANTITIES`.
        rates: seconds for each of `COSTS`.
        int8_share: of the products, the part that runs on 8-bit integers.
    """

    laws: dict[str, Law]
    rates: Floats
    int8_share: float

    def quantities(self, shape: Shape, per_node: float) -> dict[str, float]:
        """What a search asks of the machine, by `QUANTITIES`; products with those of the logits."""
        found = {}
        for name, law in self.laws.items():
            most = whole(name, shape)
            found[name] = min(law.per_edge(shape, per_node) * unit(name, shape), most) * shape.edges
        found["products"] += found["rows"] * shape.unembedding_products
        return found

    def seconds(self, shape: Shape, per_node: float, processes: int = 1) -> float:
        """CPU seconds of a search, of each process where several share the prompts."""
        return self._time(self.quantities(shape, per_node), processes)

    def most_seconds(self, shape: Shape, per_node: float) -> float:
        """If for every edge the whole model had to run once."""
        found = {name: whole(name, shape) * shape.edges for name in ("rows", "products", "bytes")}
        found["products"] += found["rows"] * shape.unembedding_products
        found["operations"] = self.quantities(shape, per_node)["operations"]
        return self._time(found, 1)

    def _time(self, quantities: dict[str, float], processes: int) -> float:
        """Operations are each process's own, what they work on is shared."""
        products = quantities["products"] / processes
        costs = (
            products * (1 - self.int8_share), products * self.int8_share,
            quantities["bytes"] / processes, quantities["operations"],
        )  # fmt: skip
        return float(self.rates @ np.array(costs))


def unit(name: str, shape: Shape) -> float:
    """What a node takes of a whole forward."""
    totals = {"products": shape.forward_products, "bytes": shape.forward_bytes}
    return totals[name] / shape.nodes if name in totals else 1.0


def whole(name: str, shape: Shape) -> float:
    """The most that an edge can take: a row of the whole model."""
    totals = {"products": shape.forward_products, "bytes": shape.forward_bytes, "rows": 1.0}
    return totals.get(name, math.inf)


def fit(observations: Sequence[Observation]) -> CostModel:
    """The model of some searches by one method.

    Raises:
        ValueError: too few searches.
    """
    if len(observations) < LEAST:
        raise ValueError(f"{len(observations)} searches are too few for a fit; measure at least {LEAST}")
    laws = {name: _law(name, observations) for name in QUANTITIES}
    shares = [o.counts["int8_products"] / o.counts["products"] for o in observations]
    return CostModel(laws, fit_rates(observations), float(np.median(shares)))


def _law(name: str, observations: Sequence[Observation]) -> Law:
    x = np.array([[1.0, *_logs(o.shape, o.per_node)] for o in observations])
    y = [math.log(o.quantity(name) / o.shape.edges / unit(name, o.shape)) for o in observations]
    return Law(*map(float, np.linalg.lstsq(x, np.array(y), rcond=None)[0]))


def fit_rates(observations: Sequence[Observation]) -> Floats:
    """Seconds for each of `COSTS`."""
    seconds = np.array([o.cpu_seconds for o in observations])
    costs = np.array([o.costs for o in observations])
    scale = costs.max(axis=0)
    scale[scale == 0] = 1.0
    relative = costs / scale / seconds[:, None]
    line = LinearRegression(positive=True, fit_intercept=False).fit(relative, np.ones(len(seconds)))
    return line.coef_ / scale


# How far off it is -------------------------------------------------------------------------------


def log_error(model: CostModel, observation: Observation) -> float:
    """Logarithm of predicted over measured seconds."""
    predicted = model.seconds(observation.shape, observation.per_node)
    return math.log(predicted / observation.cpu_seconds)


def left_out(observations: Sequence[Observation]) -> dict[str, list[float]]:
    """For each axis the errors at its shapes of a fit to the others, which do not know what it does if
    they do not vary along it."""
    errors = {}
    for axis in dict.fromkeys(o.axis for o in observations):
        inside = [o for o in observations if o.axis == axis]
        outside = [o for o in observations if o.axis != axis]
        if len(outside) >= LEAST and axis != "base":
            model = fit(outside)
            errors[axis] = [log_error(model, o) for o in inside]
    return errors


def largest_left_out(observations: Sequence[Observation]) -> float | None:
    """The error at the search that took longest of a fit to the others; ``None`` if too few."""
    longest = max(observations, key=lambda o: o.cpu_seconds)
    others = [o for o in observations if o is not longest]
    return log_error(fit(others), longest) if len(others) >= LEAST else None


def resampled(observations: Sequence[Observation], seed: int = 0) -> list[tuple[CostModel, float]]:
    """Fits to searches drawn with replacement, each with the error at an unseen one, of either sign."""
    draw = np.random.default_rng(seed)
    errors = [error for each in left_out(observations).values() for error in each] or [0.0]
    found = []
    while len(found) < RESAMPLED:
        some = [observations[i] for i in draw.integers(len(observations), size=len(observations))]
        found.append((fit(some), float(draw.choice(errors) * draw.choice([-1, 1]))))
    return found


def interval(
    fits: Sequence[tuple[CostModel, float]], shape: Shape, per_node: float, processes: int = 1
) -> tuple[float, float]:
    """Seconds between which 90 % of `resampled` fits fall, their errors included."""
    found = [model.seconds(shape, per_node, processes) * math.exp(error) for model, error in fits]
    low, high = np.percentile(found, INTERVAL)
    return float(low), float(high)
