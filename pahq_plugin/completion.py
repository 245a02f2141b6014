"""Names that the shell completes.

They are written out here, because looking them up would import PyTorch and the host at each press of
the key; a test holds every list against what the commands accept. Host methods whose keys have spaces
are left out: shells would take each word for an argument of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

PROBLEMS = ("ioi", "greater-than", "induction", "docstring", "tracr-reverse", "tracr-xproportion")
METHODS = ("pahq", "pahq-paper", "rtn-q", "acdc", "eap", "eap-ig", "Random", "ACDC")
COMPARED = (
    "pahq", "acdc", "pahq-paper", "rtn-q", "host-acdc", "eap", "eap-ig", "ig", "edge-probing",
    "subnetwork-probing", "act-mag", "random", "ground-truth", "all",
)  # fmt: skip
METRICS = ("kl_div", "mse", "logit_diff")
ABLATIONS = (
    "resample", "zero", "tokenwise_mean_clean", "tokenwise_mean_corrupt",
    "tokenwise_mean_clean_and_corrupt", "batch_tokenwise_mean", "batch_all_tok_mean",
)  # fmt: skip
ENGINES = ("auto", "incremental", "host", "onnx")
FORMATS = ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8")
SCALES = ("row", "head", "tensor", "none")
POLICIES = ("investigated_head", "investigated_path", "uniform", "full", "hybrid")
PARTS = ("qkv", "output", "scores", "values", "unembed")
KERNELS = ("auto", "eager", "native")
WITH_JSON = ("discover", "show", "compare", "store", "doctor", "export", "import", "run")
PROFILES = ("reduced", "full")

Completer = Callable[[str], list[str]]


def one_of(*names: str) -> Completer:
    """Completes one name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def several_of(*names: str) -> Completer:
    """Completes the last of names separated by commas, none of them twice."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        start = "".join(f"{name}," for name in before)
        return [start + name for name in names if name.startswith(last) and name not in before]

    return complete


def option(choices: Sequence[str], help: str) -> Any:
    """An option that takes one of ``choices``, or what else the command may know."""
    return typer.Option(help=help, autocompletion=one_of(*choices))


def argument(choices: Sequence[str], help: str) -> Any:
    """The same as an argument."""
    return typer.Argument(help=help, autocompletion=one_of(*choices))


def list_option(choices: Sequence[str], help: str) -> Any:
    """An option that takes several, separated by commas."""
    return typer.Option(help=help, autocompletion=several_of(*choices))
