"""What it costs to score all edges: seconds, plain forwards, memory.

``python -m benchmarks.attribution`` scores the edges of the bundled problems with every method of ours
and with the host's edge attribution, in turn in one process on one pinned thread. ``--model FOLDER``
takes a language model from a folder that Hugging Face wrote instead, with four prompts of IOI; there
``eactp`` takes hours and ``eap-ig-activations`` minutes, and they run only if ``--method`` names them.
``rows of a search`` measures what ``eactp`` measures with the passes of a search, each of which
recomputes only the cone of one destination. Memory is that above the model, of each method in a process
of its own. Results go to ``benchmarks/results/attribution.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.models import CASES, load
from benchmarks.speed import context, pin, reset_peak, resident, spread
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.system.files import write_text

RESULTS = Path(__file__).parent / "results" / "attribution.json"
HOST = "Edge Answer Logit Diff Gradient At Clean"
ROWS = "rows of a search"
METHODS = ("eap", "eap-ig", "eap-ig-activations", "eactp", ROWS, HOST)
QUICK = ("eap", "eap-ig", HOST)


def main() -> None:
    """Parse the arguments, measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: bundled ones")
    parser.add_argument("--model", type=Path, help="folder of a language model")
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="default: those that are quick"
    )
    parser.add_argument("--repeat", type=int, default=5, help="turns of all methods (default 5)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory processes")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pin(1)
    if arguments.model:
        problem = pahq.load_problem("ioi", model=arguments.model, batch_size=4)
        cases = {arguments.model.name: (problem.model, problem.train_loader)}
    else:
        names = arguments.case or [name for name, case in CASES.items() if case.problem]
        cases = {name: load(CASES[name]) for name in names}
    methods = arguments.method or (QUICK if arguments.model else METHODS)
    if arguments.peak:
        (case,) = cases.values()
        print(json.dumps(peak(*case, methods[0])))
        return
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, (model, loader) in cases.items():
        known[name] = measure(model, loader, methods, arguments.repeat)
        for method in () if arguments.no_memory else methods:
            of = ["--model", str(arguments.model)] if arguments.model else ["--case", name]
            known[name]["methods"][method]["mib_above_model"] = peak_in_own_process(of, method)
        write_text(arguments.out, json.dumps(known, indent=1) + "\n")
    print_table({name: known[name] for name in cases})


def measure(model: Any, loader: Any, methods: tuple[str, ...], repeat: int) -> dict[str, Any]:
    """All methods in turn, after a warm-up if there is more than one turn."""
    turns: list[dict[str, tuple[float, float]]] = []
    for _ in range(repeat + (repeat > 1)):
        turns.append({method: cost(model, loader, method) for method in methods})
    turns = turns[-repeat:]
    return {
        "edges": len(model.edges),
        "methods": {
            method: {
                "seconds": spread([turn[method][0] for turn in turns]),
                "plain_forwards": spread([turn[method][1] for turn in turns]),
            }
            for method in methods
        },
        "context": context(),
    }


def cost(model: Any, loader: Any, method: str) -> tuple[float, float]:
    """Seconds and plain forwards that scoring all edges takes."""
    if method == ROWS:
        return rows_of_a_search(model, loader)
    stats = pahq.discover(model, loader, method=method, progress=False).stats
    return stats.seconds, stats.forward_equivalents


def rows_of_a_search(model: Any, loader: Any) -> tuple[float, float]:
    """The cost of the same effects as ``eactp`` on rows of a search."""
    prompts, metric = collect_batches(model, loader, 1), resolve_metric(None, model.cfg.d_vocab_out)
    with borrowed(model):
        start = time.perf_counter()
        engine = IncrementalEngine(Question(model, loader, prompts, AblationType.RESAMPLE, metric))
        left = canonical_edges(model)
        while left:
            some = left[: engine.lookahead]
            left = left[len(engine.effects(some, [True] * len(some), exact=True)) :]
        seconds = time.perf_counter() - start
        return seconds, seconds / forward_seconds(model, prompts)


def peak(model: Any, loader: Any, method: str) -> float:
    """Peak resident MiB of this process in a run above those with the model alone."""
    pahq.methods()  # imports what any method needs
    reset_peak()
    before = resident()
    cost(model, loader, method)
    return resident() - before


def peak_in_own_process(of: list[str], method: str) -> float:
    """`peak` in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.attribution", *of, "--method", method, "--peak"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """The figures that matter."""
    table = Table(title="Scoring all edges (FP32, one thread)")
    for column in ("case", "edges", "method", "s", "plain forwards", "MiB above the model"):
        table.add_column(column)
    for case, found in rows.items():
        for method, cost in found["methods"].items():
            memory = cost.get("mib_above_model")
            table.add_row(
                case, f"{found['edges']:,}", method, text(cost["seconds"]),
                text(cost["plain_forwards"]), "" if memory is None else f"{memory:.0f}",
            )  # fmt: skip
    Console().print(table)


def text(values: dict[str, float]) -> str:
    """Median and range."""
    return f"{values['median']:.3g} ({values['min']:.3g}-{values['max']:.3g})"


if __name__ == "__main__":
    main()
