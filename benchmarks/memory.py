"""Bytes of cached activations at the shape of GPT-2 XL, beside what the host keeps.

``python -m benchmarks.memory`` builds the model with random weights (6 GB, a minute on one thread),
makes the incremental engine's caches, and compares them with the host's: the source outputs of a
clean and an ablated run, ``[src, batch, pos, d_model]`` each. The host's are measured on one prompt
and multiplied by the number of prompts.
"""

from __future__ import annotations

import argparse
import json

import torch
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations

from benchmarks.models import Case, load
from benchmarks.speed import context
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.metrics import kl_div

XL = Case(
    "gpt2-xl-shape", 1e-4, layers=48, heads=25, width=1600, d_mlp=6400, prompts=32, length=16
)  # fmt: skip


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=XL.layers, help="fewer for a quick look")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = Case(**{**vars(XL), "layers": arguments.layers})
    model, loader = load(case)
    batch = next(iter(loader))
    one = src_ablations(model, batch.corrupt[:1], AblationType.RESAMPLE)
    host = 2 * one.nbytes * case.prompts
    engine = IncrementalEngine(
        Question(model, loader, [batch], AblationType.RESAMPLE, ("kl_div", kl_div))
    )
    figures = {"host_bytes": host, "our_bytes": engine.cache_bytes, "ratio": host / engine.cache_bytes}
    print(json.dumps({"case": vars(case), **figures, "context": context()}, indent=1))


if __name__ == "__main__":
    main()
