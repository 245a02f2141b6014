"""``pahq`` against ``acdc`` on the same engine at the shape of a real model: ``python -m
benchmarks.screening``.

1. Both whole searches in turn, in one process on one pinned thread: seconds, decisions that differ.
2. One pass in few bits against its FP32 twin: the same candidates, as many as a screened pass takes,
   into the first head of a block, once all edges behind it have gone that ``acdc`` removes.
3. With ``--memory``, the peak of each search in a process of its own, over that of one plain forward.

Figures are written with their context to ``benchmarks/results/screening.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.models import CASES, Case, load
from benchmarks.precision import differing
from benchmarks.speed import context, pin, reset_peak, resident, spread
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import block as block_of
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.graph import kind as kind_of
from pahq_plugin.host.lending import borrowed
from pahq_plugin.metrics import kl_div
from pahq_plugin.models.checks import model_device
from pahq_plugin.precision.config import default_precision
from pahq_plugin.system.files import write_text

RESULTS = Path(__file__).parent / "results" / "screening.json"
PASSES = 7
"""Repeats of a single pass."""


def main() -> None:
    """Parse the arguments, measure, write the results, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), default="gpt2-shape")
    parser.add_argument("--repeat", type=int, default=1, help="turns of both searches (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="default 1, pinned to one CPU")
    parser.add_argument("--memory", action="store_true", help="measure peaks, too: two more searches")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", choices=("acdc", "pahq"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pin(arguments.threads)
    case = CASES[arguments.case]
    if arguments.peak:
        print(json.dumps(peak(case, arguments.peak)))
        return
    row = measure(case, arguments.repeat)
    if arguments.memory:
        row["memory"] = {side: peak_in_own_process(case, side) for side in ("acdc", "pahq")}
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    write_text(arguments.out, json.dumps(known | {case.name: row}, indent=1) + "\n")
    print_table(case, row)


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """Whole searches in turn, then single passes."""
    model, loader = load(case)
    forward_seconds(model, list(islice(loader, 1)))
    turns, found = [], {}
    for _ in range(repeat):
        for method in ("acdc", "pahq"):
            found[method] = search(case, method, model, loader)
        turns.append({method: one.stats.seconds for method, one in found.items()})
    acdc, screened = found["acdc"], found["pahq"]
    return {
        "turns": turns,
        "ratio": spread([turn["acdc"] / turn["pahq"] for turn in turns]),
        "precision": default_precision(torch.device("cpu")).record(),
        "edges": len(acdc.decisions),
        "kept": len(acdc.circuit),
        "differing": differing(acdc, screened),
        "decided_again": screened.stats.re_evaluations,
        "exact": sum(decision.exact for decision in screened.decisions),
        "passes": single_passes(model, loader, acdc),
        "weight_bytes": weight_bytes(model),
        "context": context(),
    }


def search(case: Case, method: str, model, loader) -> pahq.Discovery:
    """One whole search; ``pahq`` screens in the default precision of the device."""
    precision = default_precision(model_device(model)) if method == "pahq" else None
    return pahq.discover(
        model, loader, method=method, precision=precision, engine="incremental",
        threshold=case.threshold, progress=False,
    )  # fmt: skip


def weight_bytes(model) -> int:
    """Bytes of the model's weights, without the host's masks."""
    return sum(parameter.nbytes for parameter in model.wrapped_model.parameters())


@torch.inference_mode()
def single_passes(model, loader, acdc: pahq.Discovery) -> list[dict[str, Any]]:
    """Screened passes against their FP32 twins, by block."""
    edges, batch = canonical_edges(model), next(iter(loader))
    removed = {decision.edge for decision in acdc.decisions if not decision.kept}
    rows = []
    with borrowed(model):
        precision = default_precision(torch.device("cpu"))
        question = Question(model, loader, [batch], AblationType.RESAMPLE, ("kl_div", kl_div))
        engine = IncrementalEngine(question, precision)
        for layer in range(model.cfg.n_layers):
            heads = [e for e in edges if kind_of(e.dest) == "head" and block_of(e.dest) == layer]
            behind = [e for e in edges if e.dest.layer > heads[0].dest.layer and e in removed]
            engine.restore(behind)
            count = len(engine.effects(heads, [False] * len(heads), exact=False))
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(PASSES):
                for exact in (True, False):
                    seconds[exact].append(one_pass(engine, heads[:count], exact))
            exactly, screened = median(seconds[True]), median(seconds[False])
            rows.append({"block": layer, "candidates": count, "fp32": exactly, "screened": screened})
    return rows


def one_pass(engine: IncrementalEngine, candidates: list, exact: bool) -> float:
    """Seconds for the effects of all ``candidates``, however many passes that takes."""
    start, done = time.perf_counter(), 0
    while done < len(candidates):
        rest = candidates[done:]
        done += len(engine.effects(rest, [False] * len(rest), exact=exact))
    return time.perf_counter() - start


def peak(case: Case, method: str) -> dict[str, float]:
    """Peak resident MiB of this process after one plain forward, and after a whole search."""
    model, loader = load(case)
    pahq.methods()
    reset_peak()  # making the model takes more than anything that follows
    forward_seconds(model, list(islice(loader, 1)))
    before = resident()
    search(case, method, model, loader)
    return {"after_forward": before, "after_run": resident()}


def peak_in_own_process(case: Case, method: str) -> dict[str, float]:
    """`peak` in a process that has done nothing else."""
    command = [
        sys.executable, "-m", "benchmarks.screening", "--case", case.name, "--peak", method,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(case: Case, row: dict[str, Any]) -> None:
    """The figures that matter."""
    console = Console(width=110)
    console.print(
        f"{case.name}: acdc {median(t['acdc'] for t in row['turns']):.1f} s, "
        f"pahq {median(t['pahq'] for t in row['turns']):.1f} s, {row['ratio']['median']:.2f}x; "
        f"{row['differing']} of {row['edges']:,} decisions differ, {row['kept']} edges kept, "
        f"{row['decided_again']} decided again"
    )
    for side, memory in row.get("memory", {}).items():
        extra = memory["after_run"] - memory["after_forward"]
        console.print(f"{side}: {extra:.0f} MiB over one forward")
    table = Table(title="One pass")
    for column in ("block", "candidates", "FP32 ms", "screened ms", "ratio"):
        table.add_column(column, justify="right")
    for one in row["passes"]:
        table.add_row(
            str(one["block"]), str(one["candidates"]), f"{1e3 * one['fp32']:.1f}",
            f"{1e3 * one['screened']:.1f}", f"{one['fp32'] / one['screened']:.2f}x",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
