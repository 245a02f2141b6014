"""The incremental engine against the host's own ACDC loop: time, evaluations, memory.

``python -m benchmarks.speed --case ioi --case gpt2-shape`` runs both sides in turn in one process, on
one pinned thread, and each side's memory in a process of its own. Figures are written with their
context to ``benchmarks/results/speed.json`` and drawn in ``speed.svg`` beside it.

The host's side is ``acdc_prune_scores`` itself with its edges in canonical order: in full on small
graphs; on larger ones on edges spread evenly over the order, less the time of the same call without
edges, times the number of edges. A plain forward is one of the same prompts by the same
model without the split inputs that patching needs.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from rich.console import Console
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.models import CASES, Case, load
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.system.files import write_text
from pahq_plugin.system.meter import cpu_name

RESULTS = Path(__file__).parent / "results" / "speed.json"
SAMPLE = 24
SMALL = 2000
"""Up to this many edges the host's loop runs in full."""


def main() -> None:
    """Parse the arguments, measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: bundled ones")
    parser.add_argument("--repeat", type=int, default=3, help="turns of both sides (default 3)")
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
        known = save(arguments.out, row)
        draw(arguments.out.with_suffix(".svg"), list(known.values()))
    print_table(rows)


def pin(threads: int) -> None:
    """Use this many threads, on as many CPUs."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(case: Case, repeat: int) -> dict[str, object]:
    """Both sides in turn; every turn takes other edges of a sample."""
    model, loader = load(case)
    edges = canonical_edges(model)
    prompts = list(islice(loader, 1))
    whole = len(edges) <= SMALL
    samples = [edges] * repeat if whole else stratified(edges, repeat)
    turns, result, scores = [], None, None
    forward_seconds(model, prompts)
    for sample in samples:
        result = run_ours(case, model, loader)
        seconds, scores = host_loop(model, loader, sample, case.threshold)
        if not whole:
            empty = host_loop(model, loader, [], case.threshold)[0]
            seconds = empty + (seconds - empty) * len(edges) / len(sample)
        plain = forward_seconds(model, prompts)
        turns.append({"ours": result.stats.seconds, "host": seconds, "plain_forward": plain})
    assert result is not None and scores is not None
    return {
        "case": asdict(case),
        "edges": len(edges),
        "kept": len(result.circuit),
        "turns": turns,
        "host_edges_measured": sum(map(len, samples)),
        "ratio": spread([turn["host"] / turn["ours"] for turn in turns]),
        "forward_equivalents": spread([turn["ours"] / turn["plain_forward"] for turn in turns]),
        "host_forward_equivalents": spread([turn["host"] / turn["plain_forward"] for turn in turns]),
        "evaluations": result.stats.evaluations,
        "decisions_that_differ": differing(result, scores) if whole else None,
        "context": context(),
    }


def run_ours(case: Case, model, loader) -> pahq.Discovery:
    """One search by the incremental engine in FP32."""
    return pahq.discover(
        model, loader, method="acdc", engine="incremental", threshold=case.threshold, progress=False
    )


def stratified(edges: list, parts: int) -> list[list]:
    """At least `SAMPLE` edges spread evenly over the order, in parts that are spread evenly, too."""
    count = -(-SAMPLE // parts) * parts
    chosen = [edges[(2 * i + 1) * len(edges) // (2 * count)] for i in range(count)]
    return [chosen[part::parts] for part in range(parts)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


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
    pahq.methods()  # imports what either side needs
    reset_peak()  # making the model takes more than anything that follows
    forward_seconds(model, list(islice(loader, 1)))
    before = resident()
    if side == "ours":
        run_ours(case, model, loader)
    else:
        edges = canonical_edges(model)
        host_loop(model, loader, edges if case.problem else edges[-3:], case.threshold)
    return {"after_forward": before, "after_run": resident()}


def reset_peak() -> None:
    """Let Linux count this process's peak resident memory from here on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> float:
    """Peak resident memory of this process since `reset_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


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


def save(path: Path, row: dict) -> dict[str, dict]:
    """Replace the case's entry in the results; returns all of them."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[row["case"]["name"]] = row
    write_text(path, json.dumps(known, indent=1) + "\n")
    return known


def print_table(rows: list[dict]) -> None:
    """The figures that matter."""
    table = Table(title="Incremental engine against the host's ACDC loop (FP32, one run)")
    for column in ("case", "edges", "kept", "ours s", "host s", "ratio", "forwards", "MiB ours / host"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        ours, host = ([turn[side] for turn in row["turns"]] for side in ("ours", "host"))
        extra = [f"{m['after_run'] - m['after_forward']:.0f}" for m in row.get("memory", {}).values()]
        table.add_row(
            row["case"]["name"], f"{row['edges']:,}", str(row["kept"]),
            f"{median(ours):.2f} ({min(ours):.2f}-{max(ours):.2f})",
            f"{median(host):,.0f} ({min(host):,.0f}-{max(host):,.0f})",
            f"{row['ratio']['median']:.0f}x", f"{row['forward_equivalents']['median']:.0f}",
            " / ".join(extra),
        )  # fmt: skip
    Console(width=130).print(table)


def draw(path: Path, rows: list[dict]) -> None:
    """Cost per edge against the share of edges kept, and seconds against the number of edges."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for number, row in enumerate(sorted(rows, key=lambda row: row["kept"] / row["edges"]), start=1):
        ours = median(turn["ours"] for turn in row["turns"])
        host = median(turn["host"] for turn in row["turns"])
        plain = median(turn["plain_forward"] for turn in row["turns"])
        share, per_edge = 100 * row["kept"] / row["edges"], ours / row["edges"] / plain
        name = f"{number}  {row['case']['name']}"
        left.scatter(share, per_edge, color="tab:blue", marker=f"${number}$", s=70, label=name)
        right.scatter(row["edges"], ours, color="tab:blue", label="ours" if number == 1 else None)
        right.scatter(row["edges"], host, color="tab:orange", label="host" if number == 1 else None)
    left.set(xlabel="edges kept, %", ylabel="plain forwards per edge", xscale="log", yscale="log")
    right.set(xlabel="edges", ylabel="seconds", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    right.legend(frameon=False, fontsize=8)
    left.margins(x=0.1, y=0.1)
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter("")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
