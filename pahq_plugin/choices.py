"""Option values offered by shell completion, and defaults shared by commands and library functions.

The values are written out because looking them up would import PyTorch and the host at every press of
the tab key; a test compares each list with what the commands accept. Host methods with spaces in their
keys are left out: the shell would split them into several arguments.
"""

from __future__ import annotations

from typing import Literal

PROBLEMS = ("ioi", "greater-than", "induction", "docstring", "tracr-reverse", "tracr-xproportion")
METHODS = (
    "pahq", "pahq-paper", "rtn-q", "acdc", "eactp", "eap", "eap-ig", "eap-ig-activations", "Random",
    "ACDC",
)  # fmt: skip
COMPARED = (
    "pahq", "acdc", "pahq-paper", "rtn-q", "host-acdc", "eactp", "eap", "eap-ig", "eap-ig-activations",
    "ig", "edge-probing", "subnetwork-probing", "act-mag", "random", "ground-truth", "all",
)  # fmt: skip
METRICS = ("kl_div", "mse", "logit_diff")
ABLATIONS = (
    "resample", "zero", "tokenwise_mean_clean", "tokenwise_mean_corrupt",
    "tokenwise_mean_clean_and_corrupt", "batch_tokenwise_mean", "batch_all_tok_mean",
)  # fmt: skip
ENGINES = ("auto", "incremental", "host")
FORMATS = ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8")
SCALES = ("row", "head", "tensor", "none")
KERNELS = ("auto", "eager", "native")
WITH_JSON = ("discover", "show", "compare", "store", "doctor", "export", "import", "run")
PROFILES = ("reduced", "full")

Policy = Literal["investigated_head", "investigated_path", "uniform", "full", "hybrid"]
POLICIES: tuple[Policy, ...] = ("investigated_head", "investigated_path", "uniform", "full", "hybrid")

Part = Literal["qkv", "output", "scores", "values", "unembed"]
PARTS: tuple[Part, ...] = ("qkv", "output", "scores", "values", "unembed")

StreamName = Literal["load", "low", "high"]
STREAMS: tuple[StreamName, ...] = ("load", "low", "high")

DEFAULT_THRESHOLD = 0.01

ATTRIBUTION_STEPS = 5
"""Points between ablated and clean of ``eap-ig`` and ``eap-ig-activations``."""

CHECKPOINT_EVERY = 30.0
"""Seconds between checkpoint writes."""
