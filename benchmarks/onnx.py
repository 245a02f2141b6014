"""Patching runs in ONNX Runtime against PyTorch: ``python -m benchmarks.onnx --case gpt2-shape``.

One edge into the query of a head in the middle block is patched, on the same prompts, in turn by

===========================  =====================================================================
torch, dense mask            the host's own patched forward (``patch_mode``), FP32
torch, same sparse work      the plain forward, with the query of that one head computed again
ONNX dense / sweep           the two exported graphs, in FP32, with E4M3 or int8 weights, in both modes
===========================  =====================================================================

all in one process, warm, on pinned threads; then each file is loaded and run once in a process of its
own for load time and peak memory above what Python and the runtime take. On a GPU the graphs run on the
CUDA provider, if that is installed. Results go to ``benchmarks/results/onnx.json`` with their context.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import pahq_plugin as pahq
from benchmarks.models import CASES, Case, load
from benchmarks.speed import context, pin, save
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.host import Edge, PatchableModel, patch_mode
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed, unsplit
from pahq_plugin.host.patching import source_outputs

RESULTS = Path(__file__).parent / "results" / "onnx.json"
PRECISIONS = {
    "FP32": pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full"),
    "E4M3": pahq.PrecisionConfig(low="fp8_e4m3", mlp="fp8_e4m3", activations="high"),
    "int8": pahq.PrecisionConfig(low="int8", mlp="int8", activations="high"),
}
BASE = "torch, dense mask"

PEAK = """
import json, sys, time
import numpy as np, onnxruntime
from pahq_exporters.runtime.patcher import OnnxPatcher
def peak():
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
path, mode, threads, batch, length = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
before, start = peak(), time.perf_counter()
patcher = OnnxPatcher(path, mode=mode, threads=threads)
seconds, loaded = time.perf_counter() - start, peak()
corrupt = np.zeros((len(patcher.description.sources), batch, length, patcher.description.d_model), "f4")
patcher.run(np.zeros((batch, length), int), corrupt, [next(patcher.description.edges())])
used = {"loaded_bytes": loaded - before, "peak_bytes": peak() - before}
print(json.dumps({"load_seconds": seconds, **used}))
"""


def main() -> None:
    """Parse the arguments, measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), default="gpt2-shape")
    parser.add_argument("--repeat", type=int, default=15, help="turns of all sides (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="default 1, pinned to as many CPUs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pin(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(
            CASES[arguments.case], arguments.repeat, arguments.threads, arguments.device, Path(folder)
        )
    save(arguments.out, row)
    print_table(row)


def measure(case: Case, repeat: int, threads: int, device: str, folder: Path) -> dict[str, Any]:
    """All sides in turn."""
    model, loader = load(case)
    model.to(device)
    batch = next(iter(loader))
    tokens = batch.clean.to(device)
    outputs = source_outputs(model, batch.corrupt.to(device))
    edge = middle_edge(model)
    files = {
        (graph, name): export_onnx(
            model, folder / f"{graph}-{name}.onnx", graph=graph, precision=precision
        )  # type: ignore[arg-type]
        for graph in ("dense", "sweep")
        for name, precision in PRECISIONS.items()
    }
    sides: dict[str, Callable[[], object]] = {
        BASE: lambda: dense_torch(model, tokens, outputs, edge),
        "torch, same sparse work": lambda: sparse_torch(model, tokens, outputs, edge),
    }
    modes = {}
    for (graph, name), path in files.items():
        for mode in ("speed",) if name == "FP32" else ("speed", "memory"):
            patcher = OnnxPatcher(
                path, ["cuda"] if device == "cuda" else None, mode=mode, threads=threads  # type: ignore[arg-type]
            )  # fmt: skip
            prompts = patcher.prompts(tokens.cpu().numpy(), outputs.cpu().numpy())
            label = f"ONNX {graph}, {name}" + ("" if name == "FP32" else f", {mode}")
            modes[label] = (path, mode)
            sides[label] = lambda patcher=patcher, prompts=prompts: patcher.run(prompts, edges=[edge])
    with borrowed(model), torch.inference_mode():
        check(sides)
        seconds = turns(sides, repeat, device)
    del sides  # the sessions, before others are loaded
    shape = tokens.shape
    entries = {}
    for label, times in seconds.items():
        entries[label] = {
            "seconds": times,
            "ratio": [b / t for b, t in zip(seconds[BASE], times, strict=True)],
        }
        if label in modes:
            path, mode = modes[label]
            entries[label] |= {"file_bytes": file_bytes(path)}
            entries[label] |= own_process(path, mode, threads, shape) if device == "cpu" else {}
    return {"case": asdict(case), "edge": edge.name, "sides": entries, "low": low_share(files),
            "context": context() | {"device": device_name(device)}}  # fmt: skip


def middle_edge(model: PatchableModel) -> Edge:
    """From a head to the query of one two blocks later, in the middle."""
    block = model.cfg.n_layers // 2
    wanted = f"A{block - 2}.1->A{block}.2.Q"
    return next(edge for edge in canonical_edges(model) if edge.name == wanted)


def dense_torch(
    model: PatchableModel, tokens: torch.Tensor, outputs: torch.Tensor, edge: Edge
) -> torch.Tensor:
    """The host's patched forward; logits ``[batch, pos, vocab]``."""
    edge.patch_mask(model).data[edge.patch_idx] = 1.0
    try:
        with patch_mode(model, outputs):
            return model(tokens)
    finally:
        edge.patch_mask(model).data[edge.patch_idx] = 0.0


def sparse_torch(
    model: PatchableModel, tokens: torch.Tensor, outputs: torch.Tensor, edge: Edge
) -> torch.Tensor:
    """What the sweep graph computes: everything once, one head's query from its patched input."""
    inner: Any = model.wrapped_model
    source, dest = (int(node.module_name.split(".")[1]) for node in (edge.src, edge.dest))
    head, own = edge.dest.head_idx, edge.src.head_idx
    kept: dict[str, torch.Tensor] = {}

    def keep_z(z: torch.Tensor, hook: object) -> None:
        kept["given"] = z[:, :, own] @ inner.blocks[source].attn.W_O[own]

    def keep_residual(x: torch.Tensor, hook: object) -> None:
        kept["residual"] = x

    def put(q: torch.Tensor, hook: object) -> torch.Tensor:
        block = inner.blocks[dest]
        x = kept["residual"] + outputs[edge.src.src_idx] - kept["given"]
        q[:, :, head] = block.ln1(x) @ block.attn.W_Q[head] + block.attn.b_Q[head]
        return q

    hooks = [
        (f"blocks.{source}.attn.hook_z", keep_z),
        (f"blocks.{dest}.hook_resid_pre", keep_residual),
        (f"blocks.{dest}.attn.hook_q", put),
    ]
    with unsplit(model):
        return inner.run_with_hooks(tokens, fwd_hooks=hooks)


def check(sides: dict[str, Callable[[], object]]) -> None:
    """Both of torch's and the FP32 graphs give the same logits, or the comparison means nothing."""
    expected = np.asarray(torch.as_tensor(sides[BASE]()).cpu())
    for label, run in sides.items():
        found = np.asarray(torch.as_tensor(run()).cpu())
        if "FP32" in label or "torch" in label:
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), label


def turns(sides: dict[str, Callable[[], object]], repeat: int, device: str) -> dict[str, list[float]]:
    """Seconds of every side, all sides in each turn, in an order that changes."""
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    draw, labels = random.Random(0), list(sides)
    for _ in range(repeat):
        draw.shuffle(labels)
        for label in labels:
            start = time.perf_counter()
            sides[label]()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[label].append(time.perf_counter() - start)
    return seconds


def own_process(path: Path, mode: str, threads: int, shape: torch.Size) -> dict[str, float]:
    """Load time and memory of one file."""
    arguments = [str(path), mode, str(threads), *map(str, shape)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def file_bytes(path: Path) -> int:
    """A graph's file and the one with its weights, without the FP32 heads."""
    apart = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (apart.stat().st_size if apart.exists() else 0)


def low_share(files: dict[tuple[str, str], Path]) -> dict[str, float]:
    """Bytes of what is low, scales included, over those of the same in FP32."""
    from onnx import TensorProto, load

    shares = {}
    for (graph, name), path in files.items():
        if name == "FP32":
            continue
        held = {t.name: t for t in load(str(path)).graph.initializer}
        low = [t for t in held.values() if t.data_type not in (TensorProto.FLOAT, TensorProto.INT64)]
        size = sum(len(t.raw_data) + len(held[f"{t.name}.scale"].raw_data) for t in low)
        shares[f"{graph}, {name}"] = size / sum(4 * np.prod(t.dims) for t in low)
    return shares


def device_name(device: str) -> str:
    """What the graphs ran on."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def print_table(row: dict[str, Any]) -> None:
    """A row per side."""
    table = Table("side", "ms (least-most)", f"against {BASE}", "file MB", "load s", "peak MB",
                  title=f"ONNX: {row['case']['name']}, {row['edge']}")  # fmt: skip
    for label, entry in row["sides"].items():
        ms = [1e3 * s for s in entry["seconds"]]
        memory = [
            f"{entry[key] / scale:.1f}" if key in entry else "-"
            for key, scale in (("file_bytes", 1e6), ("load_seconds", 1), ("peak_bytes", 1e6))
        ]
        ratio = entry["ratio"]
        table.add_row(
            label,
            f"{median(ms):.0f} ({min(ms):.0f}-{max(ms):.0f})",
            f"{median(ratio):.2f}x ({min(ratio):.2f}-{max(ratio):.2f})",
            *memory,
        )
    Console(width=140).print(table)
    for label, share in row["low"].items():
        print(f"{label}: low weights take {share:.3f} of their FP32 bytes")


if __name__ == "__main__":
    main()
