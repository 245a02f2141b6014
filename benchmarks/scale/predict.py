"""From measured rows to the fitted model, its errors, and predictions for larger shapes.

Memory is added up from parts: weights and caches follow from the shape, Python's objects are so many
bytes for each edge, and what is left of the measured peaks is the passes' work, which has a budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from benchmarks.scale.check import earlier_runs, widened
from benchmarks.scale.fit import (
    COSTS,
    CostModel,
    Observation,
    fit,
    interval,
    largest_left_out,
    left_out,
    resampled,
    whole,
)
from benchmarks.scale.measure import METHODS
from benchmarks.scale.shapes import FLOAT, Shape
from pahq_plugin.engines.incremental.budget import RELEASE_BYTES, budget_for

Row = dict[str, Any]

CHECK = "kind"
"""The axis that the fit leaves out: a model of another kind, to check it on."""


EARLIER_METHOD = "acdc"
"""The method of earlier searches."""


def observations(rows: Sequence[Row], method: str, check: bool = False) -> list[Observation]:
    """The rows that a method is fitted to, or those that it is checked on."""
    return [
        Observation(
            row["axis"],
            Shape(**row["shape"]),
            row["kept_per_node"],
            row["methods"][method]["counts"],
            row["methods"][method]["cpu_seconds"]["median"],
        )
        for row in rows
        if (row["axis"] == CHECK) == check
    ]


def fitted(rows: Sequence[Row], method: str) -> Row:
    """The model of one method and its errors, as a JSON object; errors are factors >= 1."""
    seen = observations(rows, method)
    model = fit(seen)
    unseen = left_out(seen)
    every = [error for errors in unseen.values() for error in errors]
    largest = largest_left_out(seen)
    checked = {
        o.shape.name: model.seconds(o.shape, o.per_node) / o.cpu_seconds
        for o in observations(rows, method, check=True)
    }
    return {
        "laws": {name: asdict(law) for name, law in model.laws.items()},
        "rates": dict(zip(COSTS, map(float, model.rates), strict=True)),
        "int8_share": model.int8_share,
        "off_by_axis_left_out": {axis: max(map(_factor, each)) for axis, each in unseen.items()},
        "off_median": _median_factor(every),
        "off_largest_left_out": None if largest is None else _factor(largest),
        "predicted_over_measured": {"largest left out": None if largest is None else math.exp(largest)}
        | checked,
        "time_from_counts": _from_counts(model, seen),
        "earlier_runs": earlier_runs(model) if method == EARLIER_METHOD else {},
    }


def _factor(error: float) -> float:
    return math.exp(abs(error))


def _median_factor(errors: Sequence[float]) -> float | None:
    return _factor(median(map(abs, errors))) if errors else None


def _from_counts(model: CostModel, seen: Sequence[Observation]) -> dict[str, float]:
    """How far off the rates alone are, given what was counted."""
    factors = [_factor(math.log(float(model.rates @ o.costs) / o.cpu_seconds)) for o in seen]
    return {"median": median(factors), "max": max(factors)}


# Memory ------------------------------------------------------------------------------------------


def known_bytes(shape: Shape, method: str, context: Row) -> dict[str, float]:
    """Bytes of a search above the model, as far as they follow from the shape."""
    copies = shape.copy_bytes(*context["screening_bits"]) if method == "pahq" else 0
    return {
        "caches": shape.cache_bytes,
        "copies": copies,
        "edges": context["edge_bytes"]["search"] * shape.edges,
    }


def work_bytes(rows: Sequence[Row], method: str, context: Row) -> list[float]:
    """What is left of the measured memory of each row."""
    return [
        row["methods"][method]["memory_above"]
        - sum(known_bytes(Shape(**row["shape"]), method, context).values())
        for row in rows
    ]


def work_budget(method: str) -> float:
    """What passes and memos may hold on a CPU, see `pahq_plugin.engines.incremental.budget`."""
    budget = budget_for(torch.device("cpu"))
    rows = budget.screened_rows if method == "pahq" else budget.rows
    memos = budget.memo * (1.75 if method == "pahq" else 1.25)
    return rows + budget.work + memos + RELEASE_BYTES


def predicted_memory(shape: Shape, method: str, rows: Sequence[Row], context: Row) -> Row:
    """Bytes of model and search, in parts.

    Passes of large models use up their budget, which those of small ones need not. At most they take
    twice that, since freed blocks leave holes, and one row whatever it takes.
    """
    budget = work_budget(method)
    most = 2 * budget + shape.row_bytes
    least = min(budget, *work_bytes(rows, method, context))
    parts = {
        "weights": shape.weight_bytes,
        "model_edges": (context["edge_bytes"]["model"] + FLOAT) * shape.edges,  # and a mask's entry
    } | known_bytes(shape, method, context)
    known = sum(parts.values())
    return {
        "parts": parts | {"work": budget, "work_at_most": most},
        "bytes": known + budget,
        "interval": [known + least, known + most],
    }


# Predictions -------------------------------------------------------------------------------------


def predictions(
    rows: Sequence[Row], shapes: Sequence[Shape], per_node: float, context: Row
) -> list[Row]:
    """Time and memory of searches that were not run, each with what it assumes."""
    fits = {method: resampled(observations(rows, method)) for method in METHODS}
    earlier = earlier_runs(fit(observations(rows, EARLIER_METHOD)))
    return [
        _prediction(rows, fits[method], earlier, shape, per_node, context, method, processes)
        for shape in shapes
        for method in METHODS
        for processes in ((1,) if shape.prompts == 1 else (1, shape.prompts))
    ]


def _prediction(
    rows: Sequence[Row],
    fits: Sequence[tuple[CostModel, float]],
    earlier: Row,
    shape: Shape,
    per_node: float,
    context: Row,
    method: str,
    processes: int,
) -> Row:
    seen = observations(rows, method)
    model = fit(seen)
    quantities = model.quantities(shape, per_node)
    row: Row = {
        "predicted": True,
        "name": shape.name,
        "method": method,
        "processes": processes,
        "shape": asdict(shape),
        "parameters": shape.parameters,
        "published_parameters": shape.published_parameters,
        "edges": shape.edges,
        "nodes": shape.nodes,
        "kept_per_node": per_node,
        "kept_share": per_node * shape.nodes / shape.edges,
        "quantities": quantities,
        "models_per_edge": quantities["bytes"] / shape.edges / whole("bytes", shape),
        "cpu_seconds": model.seconds(shape, per_node, processes),
        "interval": list(widened(interval(fits, shape, per_node, processes), earlier)),
        "beyond": _beyond(seen, shape),
        "assumes": (
            f"{per_node:g} edges kept for each node; {context['cpu']}, one thread for each process; "
            "held in memory; prompts of one batch; FP32 weights, keys and values of every head"
        ),
    }
    if processes == 1:
        row["memory"] = predicted_memory(shape, method, rows, context)
        row["whole_model_for_each_edge_cpu_seconds"] = model.most_seconds(shape, per_node)
    return row


def _beyond(seen: Sequence[Observation], shape: Shape) -> dict[str, float]:
    """How many times larger the shape is than the largest that was measured."""
    return {
        "edges": shape.edges / max(o.shape.edges for o in seen),
        "parameters": shape.parameters / max(o.shape.parameters for o in seen),
        "nodes": shape.nodes / max(o.shape.nodes for o in seen),
    }
