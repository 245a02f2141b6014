"""Formats of parts that the model lacks, or that no kernel has, are refused in every use."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.discovery.discover import discover
from pahq_plugin.errors import ConfigError
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.kernels import kernels_of
from tests.helpers.lent import unusual_state
from tests.helpers.refused import refused
from tests.helpers.rounded_operands import MODELS, only
from tests.helpers.small import loader, logits, patchable, small_model, tokens, transformer


def lent(model: PatchableModel, precision: PrecisionConfig) -> None:
    """As a user of the backend gets to the check."""
    with mixed_precision(model, precision):
        logits(model, tokens())


def searched(engine: str, model: PatchableModel, precision: PrecisionConfig) -> None:
    discover(model, loader(), precision=precision, engine=engine, progress=False)


USES = {
    "mixed_precision": lent,
    "incremental": partial(searched, "incremental"),
    "host": partial(searched, "host"),
}

LACKING: list[tuple[str, dict[str, Any], str]] = [
    ("layer_norm", {"formats": {"blocks.2.scores": "int8"}}, "blocks.2.scores"),
    ("layer_norm", {"formats": {"blocks.10.mlp": "fp32"}}, "blocks.10.mlp"),
    ("attention_only", {"formats": {"blocks.0.mlp": "int8"}}, "blocks.0.mlp"),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("kind", "arguments", "word"), LACKING)
def test_parts_that_the_model_lacks_are_refused(
    kind: str, arguments: dict[str, Any], word: str, use: str
) -> None:
    model = patchable(transformer(**MODELS[kind]))
    before = unusual_state(model)
    with refused(ConfigError, word):
        USES[use](model, PrecisionConfig(low="int8", **arguments))
    before.assert_unchanged()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("formats", [{"unembed": "fp8_e5m2"}, {"blocks.1.mlp": "fp8_e5m2"}])
def test_formats_without_a_kernel_are_refused_where_one_is_demanded(
    formats: dict[str, str], use: str
) -> None:
    """No device multiplies E5M2 by E5M2."""
    model = patchable(transformer())
    before = unusual_state(model)
    here = ", ".join(kernels_of(torch.device("cpu"))) or "none"
    with refused(ConfigError, "fp8_e5m2", here):
        USES[use](model, only("fp32", kernel="native", formats=formats))
    before.assert_unchanged()


def test_a_part_that_the_model_lacks_is_refused_where_nothing_is_screened() -> None:
    precision = PrecisionConfig(low="int8", guard=math.inf, formats={"blocks.9.mlp": "bf16"})
    with refused(ConfigError, "blocks.9.mlp"):
        discover(small_model(), loader(), precision=precision, progress=False)
