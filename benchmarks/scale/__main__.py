"""Time and memory of a search against layers, heads, width, prompts, tokens, edges kept and processes,
with a fitted model that predicts GPT-2 XL and Llama 3 8B on this CPU.

``python -m benchmarks.scale`` measures models with random weights, one axis varied at a time, one thread
pinned to one CPU: both methods in turn, memory in a process each. Figures are written to
``benchmarks/results/scale.json`` after every shape and drawn in ``scale.svg`` beside it. What is
predicted says so, in the tables and in the file (``"predicted": true``). ``--quick`` measures a few tiny
models, which serve to try it out, not to predict anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Case
from benchmarks.scale import ranks
from benchmarks.scale.cases import PER_NODE, Setting, quick_settings, settings
from benchmarks.scale.measure import (
    METHODS,
    MeasureError,
    alone,
    counted,
    edge_bytes,
    screening_bits,
    timed,
)
from benchmarks.scale.predict import fitted, predictions
from benchmarks.scale.shapes import Shape, gpt2_small, gpt2_xl, llama_8b
from benchmarks.scale.show import draw, print_all
from benchmarks.speed import context, pin, spread
from pahq_plugin.system.files import write_text
from pahq_plugin.system.progress import progress_bar

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
PROCESSES = (1, 2)


def main(arguments: list[str] | None = None) -> int:
    """Measure, fit, predict, write, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few tiny models only")
    parser.add_argument(
        "--refit", action="store_true", help="measure nothing: fit to the figures in --out"
    )
    parser.add_argument("--repeat", type=positive, default=3, help="turns of both methods (default 3)")
    parser.add_argument("--prompts", type=positive, default=8, help="of the predictions (default 8)")
    parser.add_argument("--tokens", type=positive, default=16, help="of each such prompt (default 16)")
    parser.add_argument(
        "--note", default="", help="kept with the figures, such as what else was running"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.refit and not given.out.is_file():
        parser.error(f"--refit needs measured figures, but {given.out} is not there")
    if given.quick and given.out == RESULTS:
        parser.error("--quick would overwrite the committed results; pass --out FILE")
    if given.out.suffix != ".json":
        parser.error(f"--out {given.out} must end in .json")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        results = json.loads(given.out.read_text()) if given.refit else measured(given, cpus or 1)
        finish(given, results)
    except MeasureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; what was measured until then is in {given.out}", file=sys.stderr)
        return 130
    return 0


def positive(text: str) -> int:
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def measured(given: argparse.Namespace, cpus: int) -> dict[str, Any]:
    """All figures, written as they come."""
    begun = time.monotonic()
    chosen = quick_settings() if given.quick else settings()
    results: dict[str, Any] = {"rows": [], "ranks": [], "models": {}, "predictions": []}
    steps = len(chosen) + len(PROCESSES) + 1
    with progress_bar("shapes", steps) as bar:
        bar(0, "processes sharing prompts")
        for processes in PROCESSES:  # before this process is pinned to one CPU
            results["ranks"].append(shared(chosen[0], processes, cpus, given.repeat))
        pin(1)
        bar(len(PROCESSES), "bytes for each edge")
        results["context"] = {
            **context(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "note": given.note,
            "screening_bits": screening_bits(),
            "edge_bytes": alone(edge_bytes, chosen[0].case, most_edges(chosen)),
        }
        for done, setting in enumerate(chosen):
            bar(len(PROCESSES) + 1 + done, setting.case.name)
            results["rows"].append(measure(setting, given.repeat))
            write(given.out, results)
    results["seconds_in_all"] = time.monotonic() - begun
    return results


def finish(given: argparse.Namespace, results: dict[str, Any]) -> None:
    """Fit, predict, write, draw and print."""
    results["models"] = {method: fitted(results["rows"], method) for method in METHODS}
    larger = [make(given.prompts, given.tokens) for make in (gpt2_small, gpt2_xl, llama_8b)]
    results["predictions"] = predictions(results["rows"], larger, PER_NODE, results["context"])
    write(given.out, results)
    draw(given.out.with_suffix(".svg"), results)
    print_all(results)


def most_edges(chosen: list[Setting]) -> Case:
    """The case whose graph is the largest."""
    return max((setting.case for setting in chosen), key=lambda case: Shape.of(case).edges)


def write(path: Path, results: dict[str, Any]) -> None:
    """The results, whole or not at all."""
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def measure(setting: Setting, repeat: int) -> dict[str, Any]:
    """One row of the results."""
    once = alone(timed, setting.case, setting.per_node, repeat)
    case = replace(setting.case, threshold=once["threshold"])
    shape = Shape.of(case)
    methods = {}
    for method in METHODS:
        turns = [turn[method] for turn in once["turns"]]
        spreads = {key: spread([turn[key] for turn in turns]) for key in ("seconds", "cpu_seconds")}
        methods[method] = spreads | alone(counted, case, method)
    return {
        "predicted": False,
        "axis": setting.axis,
        "value": setting.value,
        "shape": asdict(shape),
        "threshold": case.threshold,
        "edges": shape.edges,
        "nodes": shape.nodes,
        "parameters": shape.parameters,
        "per_node": setting.per_node,
        "kept": once["kept"],
        "kept_per_node": once["kept"] / shape.nodes,
        "kept_share": once["kept"] / shape.edges,
        "plain_forward": spread([turn["plain_forward"] for turn in once["turns"]]),
        "methods": methods,
    }


def shared(setting: Setting, processes: int, cpus: int, repeat: int) -> dict[str, Any]:
    """The base searched by several processes."""
    case = setting.case
    row = ranks.measured(case, METHODS[0], processes, repeat)
    return {
        "predicted": False,
        "method": METHODS[0],
        "processes": processes,
        "cpus": min(cpus, processes),
        "threshold": case.threshold,
        "kept": row["kept"],
        "seconds": spread(row["seconds"]),
        "cpu_seconds": row["cpu_seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
