"""The fitted model held against searches that `benchmarks.speed` ran earlier, perhaps on another CPU.

Predicted over measured seconds differ by the machines' speeds, about the same for all of them. So what
counts is whether they differ as much at the shape of GPT-2 small, which is far from what was fitted, as
at the shapes that are near.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import Case
from benchmarks.scale.fit import CostModel
from benchmarks.scale.shapes import Shape

EARLIER = Path(__file__).parents[1] / "results" / "speed.json"
FAR = 10_000
"""Edges from which on a graph is far from the measured ones."""


def earlier_runs(model: CostModel, path: Path = EARLIER) -> dict[str, Any]:
    """Predicted over measured seconds by name of the case, over the median of those of near shapes.

    Searches that read the output at all positions are left out, and those of trained models.

    Returns:
        ``"near"`` and ``"far"`` shapes, and as ``"machine"`` the median that all are divided by; empty
        if there are no such searches.
    """
    if not path.is_file():
        return {}
    ratios: dict[str, tuple[int, float]] = {}
    for name, row in json.loads(path.read_text(encoding="utf-8")).items():
        case = Case(**row["case"])
        if case.problem is None and case.out is not None:
            shape = Shape.of(case)
            seconds = median(turn["ours"] for turn in row["turns"])
            predicted = model.seconds(shape, row["kept"] / shape.nodes)
            ratios[name] = shape.edges, predicted / seconds
    near = {name: ratio for name, (edges, ratio) in ratios.items() if edges < FAR}
    far = {name: ratio for name, (edges, ratio) in ratios.items() if edges >= FAR}
    if not near:
        return {}
    machine = math.exp(median(map(math.log, near.values())))
    return {
        "machine": machine,
        "near": {name: ratio / machine for name, ratio in near.items()},
        "far": {name: ratio / machine for name, ratio in far.items()},
    }


def widened(interval: tuple[float, float], earlier: dict[str, Any]) -> tuple[float, float]:
    """An interval of seconds made wider by what is predicted wrongly of far searches."""
    ratios = [1.0, *earlier.get("far", {}).values()]
    return interval[0] / max(ratios), interval[1] / min(ratios)
