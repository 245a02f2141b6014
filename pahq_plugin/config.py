"""Settings as frozen values; contradictions are rejected once, when a value is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from pahq_plugin.errors import ConfigError
from pahq_plugin.formats import Granularity, check_granularity, get_format
from pahq_plugin.kernels import Demand, check_demand, cpu_has_vnni

Policy = Literal["investigated_head", "investigated_path", "uniform", "full"]
POLICIES: tuple[Policy, ...] = ("investigated_head", "investigated_path", "uniform", "full")

Part = Literal["qkv", "output"]
PARTS: tuple[Part, ...] = ("qkv", "output")

DEFAULT_THRESHOLD = 0.01


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class PrecisionConfig:
    """Which parts of the model run in which number format.

    Attributes:
        low: format of the projections of every attention head that is not high.
        mlp: format of the MLPs that are not high.
        scale: which entries share a scale, see `pahq_plugin.formats`; ``"none"`` still clamps.
        policy: which parts are high for the edge under test, see `pahq_plugin.policy`.
        guard: ``"auto"``, or the relative half-width g of the band ``g |effect| + 8 floor`` around
            the threshold inside which an edge is decided again in FP32. 0 trusts every screened
            effect; ``math.inf`` trusts none, so that nothing is screened.
        parts: which projections of a head ``low`` applies to: ``"qkv"``, ``"output"`` or both.
        operands: what the incremental engine puts through few bits: ``"changes"`` from the present
            state, whose rounding errors are proportional to the change, or whole ``"values"``, as
            the patching backend and the host engine always do.
        kernel: ``"auto"`` multiplies with a real low-precision kernel where the device has one
            (`pahq_plugin.kernels`), ``"eager"`` with the reference arithmetic, which is exact in its
            numerics and not faster than FP32; ``"native"`` refuses a format that has no kernel.

    Raises:
        ConfigError: an unknown name, a format that cannot hold activations, or a guard that is
            negative or NaN.
    """

    low: str = "fp8_e4m3"
    mlp: str = "bf16"
    scale: Granularity = "row"
    policy: Policy = "investigated_head"
    guard: Literal["auto"] | float = "auto"
    parts: tuple[Part, ...] = PARTS
    operands: Literal["changes", "values"] = "changes"
    kernel: Demand = "auto"

    def __post_init__(self) -> None:
        for flag, name in (("low", self.low), ("mlp", self.mlp)):
            if not get_format(name).activations:
                raise ConfigError(
                    f"{flag}={name!r} holds weights only, but activations are quantised too; "
                    "use int8 or an FP8 format"
                )
        check_granularity(self.scale)
        if self.policy not in POLICIES:
            raise ConfigError(f"unknown policy {self.policy!r}; known: {', '.join(POLICIES)}")
        if self.guard != "auto" and not (_is_number(self.guard) and self.guard >= 0):
            raise ConfigError(f'guard={self.guard!r} must be "auto" or a number of at least 0')
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or len(set(self.parts)) != len(self.parts):
            raise ConfigError(f"parts={self.parts!r} must be distinct names of {', '.join(PARTS)}")

        if self.operands not in ("changes", "values"):
            raise ConfigError(f'operands={self.operands!r} must be "changes" or "values"')
        check_demand(self.kernel)

    @property
    def is_exact(self) -> bool:
        """Whether nothing at all runs in few bits, so that screening is FP32 already."""
        attention_low = bool(self.parts) and get_format(self.low).is_low
        return self.policy == "full" or not (attention_low or get_format(self.mlp).is_low)

    def record(self) -> dict[str, Any]:
        """The settings as JSON values; JSON has no infinity, so an infinite guard is ``"inf"``."""
        guard = "inf" if self.guard == math.inf else self.guard
        return asdict(self) | {"parts": list(self.parts), "guard": guard}


FULL_PRECISION = PrecisionConfig(low="fp32", mlp="fp32", policy="full", guard=0.0)
"""Everything in the model's own precision."""

PAPER_PRECISION = PrecisionConfig(low="fp8_e4m3", mlp="bf16", scale="none", guard=0.0, operands="values")
"""The recipe of the PAHQ paper (arXiv 2510.23264): unscaled E4M3, BF16 MLPs, nothing re-evaluated."""

RTN_PRECISION = PrecisionConfig(
    low="fp8_e4m3", mlp="bf16", scale="tensor", policy="uniform", guard=0.0, operands="values"
)
"""The paper's baseline RTN-Q: every head rounded to nearest E4M3 with one scale per tensor."""


def default_precision(device: torch.device) -> PrecisionConfig:
    """The format that has a real kernel on ``device``.

    FP8 with BF16 MLPs on CUDA of compute capability 8.9 or higher, int8 throughout on a CPU with
    VNNI instructions, otherwise BF16 heads and FP32 MLPs.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return PrecisionConfig(low="fp8_e4m3", mlp="bf16")
    if device.type == "cpu" and cpu_has_vnni():
        return PrecisionConfig(low="int8", mlp="int8")
    return PrecisionConfig(low="bf16", mlp="fp32")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of one ACDC sweep.

    Attributes:
        threshold: an edge is removed if and only if its effect is below this; above zero.
        batches: how many loader batches the metric averages over; ``None`` for all.
        seed: seeds the sample on which the guard band is calibrated and watched.

    Raises:
        ConfigError: a value is out of range.
    """

    threshold: float = DEFAULT_THRESHOLD
    batches: int | None = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not 0 < self.threshold < math.inf:
            raise ConfigError(
                f"threshold={self.threshold!r} must be a finite number above 0, for example 0.01"
            )
        if self.batches is not None and (not _is_integer(self.batches) or self.batches < 1):
            raise ConfigError(f"batches={self.batches!r} must be None (all) or an integer above 0")
        if not _is_integer(self.seed) or self.seed < 0:
            raise ConfigError(f"seed={self.seed!r} must be an integer of at least 0")
