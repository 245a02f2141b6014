"""What number formats and policies change, and what they cost: ``python -m benchmarks.precision``.

For every problem, threshold and prompt seed one FP32 search (``acdc``) and one search per
configuration, one after the other in one process on one pinned thread:

- decisions that differ from FP32's, ties aside (see `TIE`), and the Jaccard index of the circuits;
- the share of edges decided again in FP32, and of all that are decided on FP32 numbers;
- the signal-to-noise ratio of the logits of the clean prompts, in dB, with nothing high;
- seconds over those of ``acdc``, and bytes of low weights over those of all weights.

``--set`` chooses the configurations:

=========  ==========================================================================================
formats    ``pahq`` with a guard band in each format, the paper's recipe and RTN-Q
policies   every policy in int8
streams    E4M3 on a GPU with each of the three CUDA streams alone, with all and with none
ablations  bits, E4M3 against E5M2, formats of MLPs, parts, the paper's recipe step by step to ours
=========  ==========================================================================================

Results go to ``benchmarks/results/precision-SET.json``, one entry per search, with their context.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.speed import context, pin
from pahq_plugin.choices import STREAMS
from pahq_plugin.host.lending import borrowed
from pahq_plugin.precision.config import PAPER_PRECISION, RTN_PRECISION
from pahq_plugin.system.files import write_text

RESULTS = Path(__file__).parent / "results"
PROBLEMS = ("ioi", "greater-than", "induction", "tracr-reverse", "tracr-xproportion")
THRESHOLDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

TIE = (1e-4, 1e-6)
"""An FP32 effect this near the threshold, relative to itself or to max(1, loss), is a tie."""


def throughout(name: str, **changes: Any) -> pahq.PrecisionConfig:
    """Heads and MLPs in one format."""
    return pahq.PrecisionConfig(low=name, mlp=name, **changes)


EIGHT = throughout("int8")
PAPER, RTN = PAPER_PRECISION, RTN_PRECISION

SETS: dict[str, dict[str, pahq.PrecisionConfig]] = {
    "formats": {
        **{f"pahq {name}": throughout(name) for name in ("int8", "fp8_e4m3", "fp8_e5m2", "bf16")},
        "pahq-paper": PAPER,
        "rtn-q": RTN,
    },
    "policies": {
        policy: replace(EIGHT, policy=policy)
        for policy in ("investigated_head", "investigated_path", "uniform", "hybrid")
    },
    "streams": {
        " and ".join(chosen) or "none": replace(throughout("fp8_e4m3"), streams=chosen)
        for chosen in ((), ("load",), ("low",), ("high",), STREAMS)
    },
    "ablations": {
        "4 bits": replace(EIGHT, weights="int4", guard=0),
        "8 bits": replace(EIGHT, guard=0),
        "16 bits": throughout("bf16", guard=0),
        "E4M3, scaled": replace(PAPER, scale="row"),
        "E5M2, scaled": replace(PAPER, scale="row", low="fp8_e5m2"),
        "E5M2, unscaled": replace(PAPER, low="fp8_e5m2"),
        "heads E4M3, MLP FP32": replace(PAPER, scale="row", mlp="fp32"),
        "heads E4M3, MLP int8": replace(PAPER, scale="row", mlp="int8"),
        "heads E4M3, MLP E4M3": replace(PAPER, scale="row", mlp="fp8_e4m3"),
        "scores and values too": replace(EIGHT, guard=0, parts=("qkv", "output", "scores", "values")),
        "unembedding too": replace(EIGHT, guard=0, parts=("qkv", "output", "unembed")),
        "RTN-Q": RTN,
        "RTN-Q, head high": replace(RTN, policy="investigated_head"),
        "paper": PAPER,
        "paper, scaled": replace(PAPER, scale="row"),
        "paper, scaled, changes": replace(PAPER, scale="row", operands="changes"),
        "paper, scaled, changes, guard": replace(PAPER, scale="row", operands="changes", guard="auto"),
    },
}


def main() -> None:
    """Parse the arguments, measure, write the results, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="formats", dest="chosen")
    parser.add_argument("--problem", action="append", choices=PROBLEMS, help="default: all five")
    parser.add_argument("--threshold", action="append", type=float, help="default: 1e-4 to 1e-2")
    parser.add_argument("--seeds", type=int, default=5, help="prompt seeds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="default 1, pinned to one CPU")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/precision-SET.json")
    arguments = parser.parse_args()
    pin(arguments.threads)
    configurations = SETS[arguments.chosen]
    cases = [
        (problem, threshold, seed)
        for problem in arguments.problem or PROBLEMS
        for threshold in arguments.threshold or THRESHOLDS
        for seed in range(arguments.seeds)
    ]
    searches = []
    for case in track(cases, "searches", console=Console(stderr=True)):
        searches += compare(*case, configurations)
    out = arguments.out or RESULTS / f"precision-{arguments.chosen}.json"
    record = {"searches": searches, "context": context()}
    write_text(out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print_table(arguments.chosen, searches)


def compare(
    name: str, threshold: float, seed: int, configurations: dict[str, pahq.PrecisionConfig]
) -> list[dict[str, Any]]:
    """One search in FP32 and one per configuration."""
    problem = pahq.load_problem(name, seed=seed)
    settings = {"threshold": threshold, "metric": problem.metric, "progress": False}
    exact = pahq.discover(problem.model, problem.train_loader, method="acdc", **settings)
    rows = []
    for label, precision in configurations.items():
        found = pahq.discover(problem.model, problem.train_loader, precision=precision, **settings)
        stats, edges = found.stats, len(found.decisions)
        rows.append(
            {
                "problem": name,
                "threshold": threshold,
                "seed": seed,
                "configuration": label,
                "edges": edges,
                "kept": len(exact.circuit),
                "differing": differing(exact, found),
                "jaccard": jaccard(exact.circuit, found.circuit),
                "decided_again": stats.re_evaluations / edges,
                "exact": sum(decision.exact for decision in found.decisions) / edges,
                "seconds_over_acdc": stats.seconds / exact.stats.seconds,
                "guard": stats.guard,
                **logit_figures(problem, precision),
            }
        )
    return rows


def differing(exact: pahq.Discovery, found: pahq.Discovery) -> int:
    """Decisions that differ, but for those whose FP32 effect ties with the threshold."""
    threshold = exact.settings["threshold"]
    return sum(
        own.kept != other.kept and abs(own.effect - threshold) > TIE[0] * abs(own.effect) + TIE[1]
        for own, other in zip(exact.decisions, found.decisions, strict=True)
    )


def jaccard(one: set, other: set) -> float:
    """Size of the intersection over that of the union; 1 for two empty circuits."""
    return len(one & other) / len(one | other) if one | other else 1.0


@torch.inference_mode()
def logit_figures(problem: pahq.Problem, precision: pahq.PrecisionConfig) -> dict[str, float | None]:
    """Signal-to-noise ratio of clean logits with nothing high, and what low weights take."""
    model = problem.model
    tokens = next(islice(problem.train_loader, 1)).clean
    with borrowed(model):
        exact = model(tokens)
        with pahq.mixed_precision(model, precision) as backend:
            noise = model(tokens) - exact
            low_bytes = backend.low_bytes
    power = float(noise.square().sum())
    decibels = 10 * math.log10(float(exact.square().sum()) / power) if power else None
    weights = sum(parameter.nbytes for parameter in model.wrapped_model.parameters())
    return {"logit_snr_db": decibels, "low_bytes": low_bytes / weights}


def print_table(title: str, searches: list[dict[str, Any]]) -> None:
    """Sums and medians by configuration."""
    table = Table(title=f"Precision: {title}")
    columns = (
        "configuration", "searches", "differing decisions", "worst search", "Jaccard (least)", "SNR dB",
        "decided again", "FP32 decisions", "time / acdc", "low weights",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for label in dict.fromkeys(search["configuration"] for search in searches):
        own = [search for search in searches if search["configuration"] == label]
        wrong = values(own, "differing")
        table.add_row(
            label, str(len(own)), f"{sum(wrong):.0f}", f"{max(wrong):.0f}",
            f"{median(values(own, 'jaccard')):.3f} ({min(values(own, 'jaccard')):.3f})",
            f"{median(values(own, 'logit_snr_db')):.0f}",
            f"{median(values(own, 'decided_again')):.1%}", f"{median(values(own, 'exact')):.1%}",
            f"{median(values(own, 'seconds_over_acdc')):.2f}", f"{median(values(own, 'low_bytes')):.0%}",
        )  # fmt: skip
    Console(width=150).print(table)


def values(searches: Iterable[dict[str, Any]], name: str) -> list[float]:
    """One figure of every search that has it."""
    return [search[name] for search in searches if search[name] is not None]


if __name__ == "__main__":
    main()
