"""Messages about settings of precision, search and metric that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pahq_plugin.engines.placement.plan import parse_bytes
from pahq_plugin.engines.question import check_numbers
from pahq_plugin.errors import ConfigError, FormatError, GraphError, MetricError
from pahq_plugin.metrics import check_answers, resolve_metric
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import get_format
from pahq_plugin.precision.policy import check_parts
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"parts": ("qkv", "qkv")}, "must be distinct names of qkv, output"),
    ({"policy": "all"}, "unknown policy 'all'; known: investigated_head"),
    ({"guard": -1}, 'guard=-1 must be "auto" or a number of at least 0'),
    ({"operands": "both"}, 'operands=\'both\' must be "changes" or "values"'),
    ({"masters": "disk"}, 'masters=\'disk\' must be "auto", "device" or "host"'),
    ({"weights": "int8"}, "weights='int8' must be \"int4\", or None for the formats of low and mlp"),
    (
        {"weights": "int4", "low": "bf16", "mlp": "fp32"},
        "weights='int4' needs parts in int8; low='bf16'",
    ),
    ({"activations": "mid"}, 'activations=\'mid\' must be "low" or "high"'),
    (
        {"activations": "high", "low": "int8", "parts": ("qkv", "scores")},
        'activations="high" leaves nothing to round in scores, which has no weights; leave it out',
    ),
    (
        {"low": "int4"},
        "holds weights only, but activations are quantised too; use int8 or an FP8 format",
    ),
    ({"scale": "column"}, "unknown scale 'column'; known: "),
    ({"low": "fp7"}, "unknown number format 'fp7'; known: "),
    ({"formats": 3}, "must map parts to formats, such as {'blocks.3.mlp': 'bf16'}"),
    ({"formats": {"mlp": "bf16"}}, "formats: 'mlp' is not a part; write blocks.LAYER.PART with one of"),
    ({"budget": 0.1}, "budget=0.1 belongs to policy='hybrid', not "),
    ({"budget": -1, "policy": "hybrid"}, "budget=-1 must be a finite number above 0, for example"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_settings_of_precision(settings: dict[str, Any], message: str) -> None:
    with refused(ConfigError, message):
        PrecisionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "threshold=0 must be a finite number above 0, for example 0.01"),
        ({"batches": 0}, "batches=0 must be None (all) or an integer above 0"),
        ({"seed": -1}, "seed=-1 must be an integer of at least 0, below 2**63"),
    ],
)
def test_settings_of_a_search(settings: dict[str, Any], message: str) -> None:
    with refused(ConfigError, message):
        check_numbers(**{"threshold": 0.01, "batches": 1, "seed": 0} | settings)


def test_sizes_of_memory() -> None:
    with refused(ConfigError, "must be a size above 0, such as 24GB, 1.5GiB or 500MB"):
        parse_bytes("0GB")


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"engine": "fast"}, ConfigError, "unknown engine 'fast'; known: auto, incremental, host"),
    ({"ablation": "none"}, ConfigError, "unknown ablation 'none'; known: "),
    ({"metric": "kl"}, MetricError, "unknown metric 'kl'; known: kl_div, mse, logit_diff"),
    ({"method": "eap", "n_edges": -1}, ConfigError, "n_edges=-1 must be an integer between 0 and 110"),
    ({"method": "eap", "threshold": 0.1}, ConfigError, "method 'eap' cannot use threshold; it uses "),
    (
        {"method": "eap", "metric": "mse"},
        ConfigError,
        "method 'eap' cannot use metric 'mse', whose gradient is 0 at the clean state; use "
        'method="eap-ig", or metric="logit_diff"',
    ),
    ({"method": "eap-ig", "steps": 0}, ConfigError, "steps=0 must be an integer above 0, for example 5"),
    (
        {"method": "Official Circuit"},
        ConfigError,
        "needs true_edges, the official circuit; problem.true_edges holds it where one is published",
    ),
    (
        {"method": "Act Mag", "true_edges": -19698},
        GraphError,
        "true_edges is a int; expected a set of edges",
    ),
    ({"engine": "host", "max_memory": "1GB"}, ConfigError, "engine='host' cannot keep to max_memory"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_of_discover(arguments: dict[str, Any], error: Any, message: str) -> None:
    with refused(error, message):
        discover(small_model(), loader(), **arguments)


def test_weights_that_no_format_holds() -> None:
    with refused(FormatError, "int8 cannot hold a weight with NaN or infinite entries"):
        get_format("int8").quantise_weight(torch.tensor([[float("nan")]]), "row")
    with refused(ConfigError, "int4 holds weights only; use int8 or an FP8 format for activations"):
        get_format("int4").quantise_activation(torch.ones(2, 2), "row")


def test_metrics_of_one_output() -> None:
    with refused(MetricError, 'kl_div is always 0 for a model with one output; use metric="mse"'):
        resolve_metric("kl_div", 1)


def test_answers_that_are_no_token_ids() -> None:
    (batch,) = loader()
    message = "must be token ids from 0 to 2 for a method that differentiates their logits"
    with refused(MetricError, message):
        check_answers([batch], 3)


def test_formats_of_parts_that_a_model_lacks() -> None:
    for changes, formats, message in (
        ({}, {"blocks.9.mlp": "bf16"}, "formats: 'blocks.9.mlp': the model has blocks 0 to 1"),
        (
            {"attn_only": True, "d_mlp": None},
            {"blocks.0.mlp": "bf16"},
            "formats: 'blocks.0.mlp': this attention-only model has no MLP; leave it out",
        ),
    ):
        with refused(ConfigError, message):
            check_parts(small_model(**changes).cfg, PrecisionConfig(formats=formats))
