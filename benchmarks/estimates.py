"""``pahq`` with estimates against ``acdc``: seconds, rows, dispatched operations, decisions that differ.

``python -m benchmarks.estimates --case ioi --case gpt2-shape`` runs both methods in turn in one process,
on one pinned thread, in FP32 on the same engine. ``--model FOLDER`` takes a language model from a folder
that Hugging Face wrote instead, with four prompts of IOI. Operations are counted in one more search of
each method, without those that only make views; memory is that above a plain forward, of each method in
a process of its own. Results go to ``benchmarks/results/estimates.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pahq_plugin as pahq
from benchmarks.models import CASES, load
from benchmarks.speed import context, pin, reset_peak, resident, spread
from pahq_plugin.discovery import search as searching
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.system.files import write_text

RESULTS = Path(__file__).parent / "results" / "estimates.json"
METHODS = ("acdc", "pahq")


def main() -> None:
    """Parse the arguments, measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: bundled ones")
    parser.add_argument("--model", type=Path, help="folder of a language model, with --threshold")
    parser.add_argument("--threshold", type=float, default=0.05, help="for --model (default 0.05)")
    parser.add_argument("--repeat", type=int, default=5, help="turns of both methods (default 5)")
    parser.add_argument("--no-operations", action="store_true", help="do not count operations")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory processes")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pin(1)
    if arguments.model:
        problem = pahq.load_problem("ioi", model=arguments.model, batch_size=4)
        cases = {arguments.model.name: (arguments.threshold, problem.model, problem.train_loader)}
    else:
        names = arguments.case or [name for name, case in CASES.items() if case.problem]
        cases = {name: (CASES[name].threshold, *load(CASES[name])) for name in names}
    if arguments.peak:
        (case,) = cases.values()
        print(json.dumps(peak(*case, arguments.peak)))
        return
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, case in cases.items():
        known[name] = measure(*case, arguments.repeat, not arguments.no_operations)
        if not arguments.no_memory:
            of = ["--model", str(arguments.model)] if arguments.model else ["--case", name]
            of += ["--threshold", str(arguments.threshold)]
            known[name]["memory"] = {method: peak_in_own_process(of, method) for method in METHODS}
        write_text(arguments.out, json.dumps(known, indent=1) + "\n")
    print_table({name: known[name] for name in cases})


def measure(threshold: float, model: Any, loader: Any, repeat: int, count: bool) -> dict[str, Any]:
    """Both methods in turn, after a warm-up."""
    forward_seconds(model, list(islice(loader, 1)))
    turns: list[dict[str, float]] = []
    found: dict[str, pahq.Discovery] = {}
    for _ in range(repeat):
        found = {method: search(model, loader, method, threshold) for method in METHODS}
        turns.append({method: result.stats.seconds for method, result in found.items()})
    counts = {method: operations(model, loader, method, threshold) for method in METHODS if count}
    acdc, ours = (found[method] for method in METHODS)
    return {
        "threshold": threshold,
        "edges": len(acdc.decisions),
        "kept": len(acdc.circuit),
        "turns": turns,
        "ratio": spread([turn["acdc"] / turn["pahq"] for turn in turns]),
        "rows": {method: result.stats.evaluations for method, result in found.items()},
        "estimates": ours.stats.estimates,
        "operations": counts,
        "decisions_that_differ": sum(
            one.kept != other.kept for one, other in zip(acdc.decisions, ours.decisions, strict=True)
        ),
        "context": context(),
    }


def peak(threshold: float, model: Any, loader: Any, method: str) -> dict[str, float]:
    """Peak resident MiB of this process after one plain forward, and after a search."""
    pahq.methods()  # imports what either method needs
    reset_peak()  # making the model takes more than anything that follows
    forward_seconds(model, list(islice(loader, 1)))
    before = resident()
    search(model, loader, method, threshold)
    return {"after_forward": before, "after_run": resident()}


def peak_in_own_process(of: list[str], method: str) -> dict[str, float]:
    """`peak` in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.estimates", *of, "--peak", method]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def search(model: Any, loader: Any, method: str, threshold: float) -> pahq.Discovery:
    """One search."""
    return pahq.discover(model, loader, method=method, threshold=threshold, progress=False)


class Operations(TorchDispatchMode):
    """Counts operations that PyTorch dispatches, other than views: those that write nothing and whose
    results share the memory of an argument.

    Attributes:
        number: of them.
    """

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and run it."""
        result = func(*args, **(kwargs or {}))
        made = storages(result)
        is_view = bool(made) and not func._schema.is_mutable and made <= storages((args, kwargs))
        self.number += not is_view
        return result


def storages(values: Any) -> set[int]:
    """Return what tells apart the memories of all tensors in nested ``values``."""
    return {x.untyped_storage()._cdata for x in tree_leaves(values) if isinstance(x, Tensor)}


def operations(model: Any, loader: Any, method: str, threshold: float) -> int:
    """Count the operations of a search: of what ``result.stats.seconds`` times."""
    counted, timed = Operations(), searching.measured

    @contextmanager
    def counting(*arguments: Any) -> Iterator[None]:
        with timed(*arguments), counted:
            yield

    with patch.object(searching, "measured", counting):
        search(model, loader, method, threshold)
    return counted.number


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """The figures that matter."""
    table = Table(title="pahq with estimates against acdc (FP32, one thread)")
    columns = (
        "case",
        "edges",
        "kept",
        "acdc / pahq",
        "rows",
        "operations",
        "MiB",
        "estimated",
        "differ",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, row in rows.items():
        ratio, pairs = row["ratio"], (row["rows"], row["operations"])
        both = [" / ".join(f"{pair[method]:,}" for method in METHODS if pair) for pair in pairs]
        above = [f"{m['after_run'] - m['after_forward']:.0f}" for m in row.get("memory", {}).values()]
        table.add_row(
            name, f"{row['edges']:,}", str(row["kept"]),
            f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})", *both, " / ".join(above),
            f"{row['estimates'].get('edges', 0):,}", str(row["decisions_that_differ"]),
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
