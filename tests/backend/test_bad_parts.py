"""Parts and formats that do not exist, that the model lacks, or that no kernel has, are refused."""

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
from tests.helpers.rounded_operands import MODELS, only
from tests.helpers.small import loader, logits, patchable, small_model, tokens, transformer

WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"parts": ("qkv", "mlp")}, ("parts=('qkv', 'mlp')", "qkv, output, scores, values, unembed")),
    ({"parts": ("scores", "scores")}, ("parts=('scores', 'scores')", "distinct")),
    ({"parts": "scores"}, ("parts='scores'", "qkv, output, scores, values, unembed")),
    ({"formats": {"blocks.0.attn": "int8"}}, ("'blocks.0.attn'", "blocks.LAYER.PART", "scores", "mlp")),
    ({"formats": {"blocks.0.unembed": "int8"}}, ("'blocks.0.unembed'", "or unembed")),
    ({"formats": {"scores": "int8"}}, ("'scores'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.-1.mlp": "int8"}}, ("'blocks.-1.mlp'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.00.mlp": "int8"}}, ("'blocks.00.mlp'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.0.mlp": "fp7"}}, ("'fp7'", "bf16", "int8")),
    ({"formats": {"blocks.0.mlp": "int4"}}, ("blocks.0.mlp='int4'", "weights only", "int8")),
    ({"formats": {"unembed": "int4"}}, ("unembed='int4'", "weights only", "int8")),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_parts_and_formats_that_do_not_exist_are_refused(
    arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        PrecisionConfig(**arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message


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

LACKING: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("layer_norm", {"formats": {"blocks.2.scores": "int8"}}, ("'blocks.2.scores'", "blocks 0 to 1")),
    ("layer_norm", {"formats": {"blocks.10.mlp": "fp32"}}, ("'blocks.10.mlp'", "blocks 0 to 1")),
    ("attention_only", {"formats": {"blocks.0.mlp": "int8"}}, ("'blocks.0.mlp'", "no MLP", "leave it")),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("kind", "arguments", "words"), LACKING)
def test_parts_that_the_model_lacks_are_refused(
    kind: str, arguments: dict[str, Any], words: tuple[str, ...], use: str
) -> None:
    model = patchable(transformer(**MODELS[kind]))
    before = unusual_state(model)
    with pytest.raises(ConfigError) as caught:
        USES[use](model, PrecisionConfig(low="int8", **arguments))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message
    before.assert_unchanged()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("formats", [{"unembed": "fp8_e5m2"}, {"blocks.1.mlp": "fp8_e5m2"}])
def test_formats_without_a_kernel_are_refused_where_one_is_demanded(
    formats: dict[str, str], use: str
) -> None:
    """No device multiplies E5M2 by E5M2."""
    model = patchable(transformer())
    before = unusual_state(model)
    with pytest.raises(ConfigError) as caught:
        USES[use](model, only("fp32", kernel="native", formats=formats))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    here = ", ".join(kernels_of(torch.device("cpu"))) or "none"
    assert all(word in message for word in ("fp8_e5m2", "native", f"have one: {here}", "auto")), message
    before.assert_unchanged()


@pytest.mark.parametrize("formats", [5, [1], "ab"])
def test_formats_that_are_no_pairs_are_refused(formats: Any) -> None:
    with pytest.raises(ConfigError, match=r"must map parts to formats, such as"):
        PrecisionConfig(formats=formats)


def test_a_part_that_the_model_lacks_is_refused_where_nothing_is_screened() -> None:
    precision = PrecisionConfig(low="int8", guard=math.inf, formats={"blocks.9.mlp": "bf16"})
    with pytest.raises(ConfigError, match=r"blocks\.9\.mlp.*blocks 0 to 1"):
        discover(small_model(), loader(), precision=precision, progress=False)
