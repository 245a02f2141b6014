"""The incremental engine against the host's own ACDC loop: time, evaluations, memory.

``python -m benchmarks.speed --case ioi --case gpt2-shape`` runs both sides in one process, in turn,
on one pinned thread, and each side's memory in a process of its own. Results are written with their
context to ``benchmarks/results/speed.json``.

The host's side is ``acdc_prune_scores`` itself with its edges in canonical order: in full on the
bundled problems; on larger shapes on 24 edges spread evenly over the order, less the time of the
same call without edges, times the number of edges.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from rich.console import Console
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.models import CASES, Case, load
from pahq_plugin.files import write_text
from pahq_plugin.host.graph import canonical_edges

RESULTS = Path(__file__).parent / "results" / "speed.json"
SAMPLE = 24


def main() -> None:
    """Parse the arguments, measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: bundled ones")
    parser.add_argument("--repeat", type=int, default=3, help="runs of our side (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="default 1, pinned to one CPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory processes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", choices=("ours", "host"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.case or [name for name, case in CASES.items() if case.problem]
    pin(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(CASES[names[0]], arguments.peak)))
        return
    rows = []
    for name in names:
        row = measure(CASES[name], arguments.repeat)
        if not arguments.no_memory:
            row["memory"] = {side: peak_in_own_process(name, side) for side in ("ours", "host")}
        rows.append(row)
        save(arguments.out, row)
    print_table(rows)


def pin(threads: int) -> None:
    """Use this many threads, on as many CPUs."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(case: Case, repeat: int) -> dict[str, object]:
    """Both sides in turn."""
    model, loader = load(case)
    edges = canonical_edges(model)
    tokens = next(iter(loader)).clean
    sampled = edges if case.problem else edges[SAMPLE // 2 :: max(1, len(edges) // SAMPLE)][:SAMPLE]
    forwards = [forward(model, tokens) for _ in range(4)][1:]
    ours, results = [], []
    host_empty = host_loop(model, loader, [], case.threshold)[0] if not case.problem else 0.0
    for turn in range(repeat):
        result = pahq.discover(
            model, loader, method="acdc", engine="incremental", threshold=case.threshold, progress=False
        )
        ours.append(result.stats.seconds)
        results.append(result)
        if turn == 0:
            spent, scores = host_loop(model, loader, sampled, case.threshold)
        forwards.append(forward(model, tokens))
    host = spent if case.problem else host_empty + (spent - host_empty) * len(edges) / len(sampled)
    plain = median(forwards)
    return {
        "case": asdict(case),
        "edges": len(edges),
        "kept": len(results[0].circuit),
        "ours_seconds": ours,
        "host_seconds": host,
        "host_edges_measured": len(sampled),
        "ratio": host / median(ours),
        "plain_forward_seconds": forwards,
        "forward_equivalents": median(ours) / plain,
        "host_forward_equivalents": host / plain,
        "evaluations": results[0].stats.evaluations,
        "decisions_that_differ": differing(results[0], scores) if case.problem else None,
        "context": context(),
    }


@torch.inference_mode()
def forward(model: object, tokens: torch.Tensor) -> float:
    """Seconds of one plain forward."""
    start = time.perf_counter()
    model(tokens)  # type: ignore[operator]
    return time.perf_counter() - start


def host_loop(model, loader, edges, threshold):
    """Seconds and scores of the host's ACDC on ``edges``, in that order."""
    with exactly(model, edges), redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        scores = acdc_prune_scores(model, loader, None, tao_exps=[0], tao_bases=[threshold])
        seconds = time.perf_counter() - start
    for mask in model.patch_masks.values():
        mask.data.zero_()
    return seconds, scores


@contextmanager
def exactly(model, edges):
    """Give the host its edges as a list: it keeps that order among edges of one layer."""
    own = model.edges
    model.edges = edges
    try:
        yield
    finally:
        model.edges = own


def differing(result, scores) -> int:
    """Decisions that differ from the host's, whose scores are infinite for kept edges."""
    return sum(d.kept != bool(d.edge.prune_score(scores).isinf()) for d in result.decisions)


def peak(case: Case, side: str) -> dict[str, float]:
    """Peak resident MiB of this process after one plain forward, and after a whole run."""
    model, loader = load(case)
    forward(model, next(iter(loader)).clean)
    before = resident()
    if side == "ours":
        pahq.discover(
            model, loader, method="acdc", engine="incremental", threshold=case.threshold, progress=False
        )
    else:
        edges = canonical_edges(model)
        host_loop(model, loader, edges if case.problem else edges[-3:], case.threshold)
    return {"after_forward": before, "after_run": resident()}


def resident() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_in_own_process(name: str, side: str) -> dict[str, float]:
    """`peak` in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.speed", "--case", name, "--peak", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def context() -> dict[str, object]:
    """What the figures depend on."""
    packages = ("pahq-plugin", "auto-circuit", "transformer-lens", "torch", "numpy")
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def save(path: Path, row: dict) -> None:
    """Replace the case's entry in the results."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[row["case"]["name"]] = row
    write_text(path, json.dumps(known, indent=1) + "\n")


def print_table(rows: list[dict]) -> None:
    """The figures that matter."""
    table = Table(title="Incremental engine against the host's ACDC loop (FP32, one run)")
    for column in ("case", "edges", "kept", "ours s", "host s", "ratio", "forwards", "MiB ours / host"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        ours = row["ours_seconds"]
        spread = f"{median(ours):.2f} ({min(ours):.2f}-{max(ours):.2f})"
        extra = [f"{m['after_run'] - m['after_forward']:.0f}" for m in row.get("memory", {}).values()]
        table.add_row(
            row["case"]["name"], f"{row['edges']:,}", str(row["kept"]), spread,
            f"{row['host_seconds']:.0f}", f"{row['ratio']:.0f}x",
            f"{row['forward_equivalents']:.0f}", " / ".join(extra),
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
