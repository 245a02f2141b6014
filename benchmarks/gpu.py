"""Searches and products on a GPU: ``python -m benchmarks.gpu``.

1. Whole searches at the shape of a real model, ``acdc`` and ``pahq`` on the incremental engine and the
   host's own loop in turn, in one process: seconds, decisions that differ, peaks of the allocator above
   what the model takes. The host's loop runs on a sample of edges, see `benchmarks.speed`.
2. What the GPU holds while a model is lent in eight bits, workspaces included, with FP32 masters there
   and in host memory.
3. Products of a head's and an MLP's shape in each format that this GPU has a kernel for, beside FP32.
4. How long the kernels of a search run, and how many it launches, beside the seconds that it takes.

Figures are written with their context to ``benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import pahq_plugin as pahq
from benchmarks.models import CASES, Case, load
from benchmarks.precision import differing
from benchmarks.screening import search, weight_bytes
from benchmarks.speed import SAMPLE, SMALL, context, host_loop, spread, stratified
from pahq_plugin.discovery.cost import forward_seconds
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.config import PrecisionConfig, default_precision
from pahq_plugin.precision.formats import get_format
from pahq_plugin.precision.kernels import kernel_for, kernels_of
from pahq_plugin.precision.weights import LowWeights
from pahq_plugin.system.files import write_text
from pahq_plugin.system.meter import memory_above

RESULTS = Path(__file__).parent / "results" / "gpu.json"
GPU = torch.device("cuda")
PRODUCTS = {"head": (64, 768, 64), "MLP": (1, 768, 3072), "wide MLP": (1, 4096, 16384)}
"""Weights by name: how many side by side, their rows and columns."""

ROWS = 4096
"""Tokens that a product takes: 32 rows of 8 prompts of 16 tokens."""

REPEATS = 50
PARTS = ("products", "kernels", "searches")


def main() -> None:
    """Parse the arguments, measure, write the results, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: gpt2-shape")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--repeat", type=int, default=3, help="turns of all sides (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    console = Console(width=120)
    here = context() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    parts, cases = arguments.part or PARTS, arguments.case or ["gpt2-shape"]
    if "products" in parts:
        known["products"] = {"context": here, "rows": [product(*one) for one in product_cases()]}
        print_products(console, known["products"]["rows"])
        write_text(arguments.out, json.dumps(known, indent=1) + "\n")
    for name in cases if "kernels" in parts else ():
        row = kernels(CASES[name], arguments.repeat) | {"context": here}
        known.setdefault("kernels", {})[name] = row
        print_kernels(console, name, row)
        write_text(arguments.out, json.dumps(known, indent=1) + "\n")
    for name in cases if "searches" in parts else ():
        row = searches(CASES[name], arguments.repeat) | {"context": here}
        known.setdefault("searches", {})[name] = row
        print_search(console, name, row)
        write_text(arguments.out, json.dumps(known, indent=1) + "\n")


def searches(case: Case, repeat: int) -> dict[str, Any]:
    """All sides in turn; each turn of the host's loop takes other edges of a sample."""
    model, loader = load(case, GPU.type)
    edges, prompts = canonical_edges(model), list(islice(loader, 1))
    whole = len(edges) <= SMALL
    samples = [edges] * repeat if whole else stratified(edges, repeat)
    forward_seconds(model, prompts)
    warm_up()
    turns, found, peaks = [], {}, {}
    for sample in samples:
        turn = {}
        for method in ("acdc", "pahq"):
            with memory_above(GPU) as memory:
                found[method] = search(case, method, model, loader)
            turn[method], peaks[method] = found[method].stats.seconds, memory.above
            print(f"{case.name} {method}: {turn[method]:.1f} s", flush=True)  # it may take minutes
        with memory_above(GPU) as memory:
            seconds, _ = host_loop(model, loader, sample, case.threshold)
        if not whole:
            empty = host_loop(model, loader, [], case.threshold)[0]
            seconds = empty + (seconds - empty) * len(edges) / len(sample)
        turn["host"], peaks["host"] = seconds, memory.above
        turn["plain_forward"] = forward_seconds(model, prompts)
        turns.append(turn)
    return {
        "case": asdict(case),
        "turns": turns,
        "host_over_acdc": spread([turn["host"] / turn["acdc"] for turn in turns]),
        "acdc_over_pahq": spread([turn["acdc"] / turn["pahq"] for turn in turns]),
        "host_edges_measured": sum(map(len, samples)),
        "edges": len(edges),
        "kept": len(found["acdc"].circuit),
        "differing": differing(found["acdc"], found["pahq"]),
        "evaluations": {method: one.stats.evaluations for method, one in found.items()},
        "precision": default_precision(GPU).record(),
        "peak_above_model": peaks,
        "weights": weight_bytes(model),
        "lent_weights": lent_weights(model, prompts),
    }


def kernels(case: Case, repeat: int) -> dict[str, Any]:
    """By method: seconds of some searches, the sum of their kernels' seconds, and how many there are.

    The profiler slows the launches and not the kernels, so it looks at a search of its own.
    """
    model, loader = load(case, GPU.type)
    warm_up()
    rows: dict[str, dict[str, Any]] = {"acdc": {"seconds": []}, "pahq": {"seconds": []}}
    for _ in range(repeat):
        for method, row in rows.items():
            row["seconds"].append(search(case, method, model, loader).stats.seconds)
    for method, row in rows.items():
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            search(case, method, model, loader)
        events = [one for one in profiler.key_averages() if one.self_device_time_total]
        row["kernel_seconds"] = sum(one.self_device_time_total for one in events) / 1e6
        row["launches"] = sum(one.count for one in events)
        row["busy"] = row["kernel_seconds"] / median(row["seconds"])
    return {"case": asdict(case), **rows}


def warm_up() -> None:
    """Load once what is no part of the question: kernels, libraries, imports."""
    case = CASES["tiny-shape"]
    model, loader = load(case, GPU.type)
    for method in ("acdc", "pahq"):
        search(case, method, model, loader)
    host_loop(model, loader, canonical_edges(model)[:SAMPLE], case.threshold)


def lent_weights(model, prompts) -> dict[str, int]:
    """Bytes on the GPU while a model is lent in eight bits, by where its FP32 masters are."""
    held = {}
    for where in ("device", "host"):
        precision = PrecisionConfig(low="fp8_e4m3", mlp="fp8_e4m3", masters=where)
        torch.cuda.empty_cache()
        with pahq.mixed_precision(model, precision), torch.no_grad():
            model(prompts[0].clean)
            held[where] = torch.cuda.memory_allocated()
    return held


def product_cases() -> list[tuple[str, str]]:
    """Shapes and formats."""
    return [(shape, name) for shape in PRODUCTS for name in ("fp32", *kernels_of(GPU))]


def product(shape: str, name: str) -> dict[str, Any]:
    """Seconds of one product, activations rounded before it; of the product alone, too."""
    count, d_in, d_out = PRODUCTS[shape]
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(ROWS, d_in, generator=generator, device=GPU)
    weight = torch.randn(d_in, count * d_out, generator=generator, device=GPU)
    if name == "fp32":
        seconds = {"whole": timed(lambda: x @ weight), "product": timed(lambda: x @ weight)}
    else:
        number_format, kernel = get_format(name), kernel_for(get_format(name), GPU, "native")
        assert kernel is not None
        low = LowWeights("row", "native").get("w", weight, number_format)
        rounded = number_format.quantise_activation(x, "row", None)
        seconds = {
            "whole": timed(
                lambda: kernel.multiply(number_format.quantise_activation(x, "row", None), low)
            ),
            "product": timed(lambda: kernel.multiply(rounded, low)),
        }
    return {"shape": shape, "sizes": [ROWS, d_in, count * d_out], "format": name, **seconds}


def timed(work: Callable[[], object]) -> float:
    """Median seconds, warm, by the host's clock with the device waited for."""
    times = []
    for _ in range(REPEATS + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[5:])


def print_products(console: Console, rows: list[dict[str, Any]]) -> None:
    """Milliseconds, and times FP32."""
    table = Table(title="Products")
    for column in ("shape", "format", "product ms", "x FP32", "with rounding ms", "x FP32"):
        table.add_column(column, justify="left" if column in ("shape", "format") else "right")
    plain = {row["shape"]: row for row in rows if row["format"] == "fp32"}
    for row in rows:
        cells = []
        for part in ("product", "whole"):
            cells += [f"{1e3 * row[part]:.3f}", f"{plain[row['shape']][part] / row[part]:.2f}"]
        table.add_row(row["shape"], row["format"], *cells)
    console.print(table)


def print_kernels(console: Console, name: str, row: dict[str, Any]) -> None:
    """What share of a search the GPU works."""
    for method in ("acdc", "pahq"):
        one = row[method]
        console.print(
            f"{name} {method}: {median(one['seconds']):.2f} s, of which {one['launches']:,} kernels run "
            f"{one['kernel_seconds']:.2f} s ({one['busy']:.0%})"
        )


def print_search(console: Console, name: str, row: dict[str, Any]) -> None:
    """The figures that matter."""
    seconds = {side: median(turn[side] for turn in row["turns"]) for side in ("acdc", "pahq", "host")}
    console.print(
        f"{name}: {row['edges']:,} edges, {row['kept']} kept, {row['differing']} decisions differ; "
        + ", ".join(f"{side} {value:,.2f} s" for side, value in seconds.items())
        + f"; host/acdc {row['host_over_acdc']['median']:.0f}x, "
        f"acdc/pahq {row['acdc_over_pahq']['median']:.2f}x; MiB above the model: "
        + ", ".join(f"{side} {value / 2**20:,.0f}" for side, value in row["peak_above_model"].items())
        + "; weights lent "
        + ", ".join(f"{where} {value / 2**20:,.0f}" for where, value in row["lent_weights"].items())
    )


if __name__ == "__main__":
    main()
