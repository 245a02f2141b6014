"""Settings: contradictions are refused when a value is made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from pahq_plugin.errors import ConfigError
from pahq_plugin.precision.config import (
    FULL_PRECISION,
    PAPER_PRECISION,
    RTN_PRECISION,
    PrecisionConfig,
    cpu_has_vnni,
    default_precision,
)
from tests.helpers.refused import refused


def test_the_defaults_are_those_of_the_contract() -> None:
    config = PrecisionConfig()
    assert (config.low, config.mlp, config.scale) == ("fp8_e4m3", "bf16", "row")
    assert (config.policy, config.guard) == ("investigated_head", "auto")


def test_settings_are_frozen() -> None:
    config: Any = PrecisionConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.low = 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mlp": "fp7"}, "fp7"),
        ({"mlp": "int4"}, "int4"),
        ({"parts": ("qkv", "mlp")}, "mlp"),
        ({"parts": "scores"}, "scores"),
        ({"guard": math.nan}, "guard=nan"),
        ({"guard": True}, "guard=True"),
        ({"guard": "wide"}, "guard='wide'"),
        ({"guard": None}, "guard=None"),
        ({"formats": {"blocks.0.attn": "int8"}}, "blocks.0.attn"),
        ({"formats": {"blocks.0.unembed": "int8"}}, "blocks.0.unembed"),
        ({"formats": {"blocks.-1.mlp": "int8"}}, "blocks.-1.mlp"),
        ({"formats": {"blocks.00.mlp": "int8"}}, "blocks.00.mlp"),
        ({"formats": {"blocks.0.mlp": "fp7"}}, "fp7"),
        ({"formats": {"blocks.0.mlp": "int4"}}, "blocks.0.mlp"),
        ({"formats": {"unembed": "int4"}}, "unembed"),
        ({"formats": [1]}, "formats"),
        ({"formats": "ab"}, "formats"),
        ({"budget": 0.0, "policy": "hybrid"}, "budget=0.0"),
        ({"budget": math.nan, "policy": "hybrid"}, "budget=nan"),
        ({"budget": math.inf, "policy": "hybrid"}, "budget=inf"),
        ({"budget": True, "policy": "hybrid"}, "budget=True"),
        ({"budget": "0.1", "policy": "hybrid"}, "budget='0.1'"),
    ],
)
def test_wrong_precision_is_refused(change: dict[str, Any], word: str) -> None:
    with refused(ConfigError, word):
        PrecisionConfig(**change)


@pytest.mark.parametrize("guard", [0, 0.0, 0.5, math.inf, "auto"])
def test_guards_that_are_allowed(guard: Any) -> None:
    assert PrecisionConfig(guard=guard).guard == guard


@pytest.mark.parametrize(
    ("config", "exact"),
    [
        (PrecisionConfig(), False),
        (PrecisionConfig(policy="full"), True),
        (PrecisionConfig(low="fp32", mlp="fp32"), True),
        (PrecisionConfig(low="fp32"), False),
        (PrecisionConfig(mlp="fp32"), False),
        (PrecisionConfig(parts=(), mlp="fp32"), True),
        (PrecisionConfig(parts=()), False),
        (FULL_PRECISION, True),
        (PAPER_PRECISION, False),
        (RTN_PRECISION, False),
    ],
)
def test_what_is_exact(config: PrecisionConfig, exact: bool) -> None:
    assert config.is_exact is exact


def test_recipes_are_those_of_the_paper() -> None:
    for config in (PAPER_PRECISION, RTN_PRECISION):
        assert (config.low, config.mlp, config.guard) == ("fp8_e4m3", "bf16", 0.0)
    assert (PAPER_PRECISION.scale, PAPER_PRECISION.policy) == ("none", "investigated_head")
    assert (RTN_PRECISION.scale, RTN_PRECISION.policy) == ("tensor", "uniform")


@pytest.mark.parametrize(
    ("capability", "low"), [((8, 0), "bf16"), ((8, 9), "fp8_e4m3"), ((9, 0), "fp8_e4m3")]
)
def test_gpus_get_the_format_of_their_kernels(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], low: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_precision(torch.device("cuda")).low == low


@pytest.mark.parametrize(("vnni", "formats"), [(True, ("int8", "int8")), (False, ("bf16", "fp32"))])
def test_cpus_get_the_format_of_their_kernels(
    monkeypatch: pytest.MonkeyPatch, vnni: bool, formats: tuple[str, str]
) -> None:
    monkeypatch.setattr("pahq_plugin.precision.config.cpu_has_vnni", lambda: vnni)
    config = default_precision(torch.device("cpu"))
    assert (config.low, config.mlp) == formats


def test_a_torch_without_the_question_has_no_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    assert cpu_has_vnni() is False
