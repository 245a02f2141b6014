"""Precision settings as frozen values; contradictions are refused once, when a value is created."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from pahq_plugin.choices import PARTS, POLICIES, STREAMS, Part, Policy, StreamName
from pahq_plugin.errors import ConfigError
from pahq_plugin.precision.formats import Granularity, NumberFormat, check_granularity, get_format
from pahq_plugin.precision.kernels import Demand, check_demand, cpu_has_vnni

UNEMBED = "unembed"
"""The only part that does not belong to a block."""

DEFAULT_BUDGET = 0.02


def _is_number(value: object) -> bool:
    """Return whether ``value`` is a number that a float can hold, or infinity."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def _names(flag: str, value: object, known: Sequence[str]) -> tuple[Any, ...]:
    """Return ``value`` as a tuple; refuse all but distinct known names, with a `ConfigError`."""
    names = tuple(value) if isinstance(value, (tuple, list)) else (None,)
    are_known = all(isinstance(name, str) and name in known for name in names)
    if not are_known or len(set(names)) < len(names):
        raise ConfigError(f"{flag}={value!r} must be distinct names of {', '.join(known)}")
    return names


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Which parts of the model run in which number format.

    Attributes:
        low: format of the projections of every attention head that is not high.
        mlp: format of the MLPs that are not high.
        scale: which entries share a scale, see `pahq_plugin.precision.formats`; ``"none"`` still clamps.
        policy: which parts are high for the edge under test, see `pahq_plugin.precision.policy`.
        guard: ``"auto"``, or the relative half-width g of the band ``g |effect| + 8 floor`` around
            the threshold, inside which an edge is decided again in FP32. 0 trusts every screened
            effect; ``math.inf`` trusts none, so that nothing is screened.
        parts: what ``low`` applies to: the projections ``"qkv"`` and ``"output"`` of a head, both
            operands of its attention ``"scores"`` (queries, keys) and of its ``"values"`` (pattern,
            values), and ``"unembed"``.
        formats: other formats for single parts, by name: ``{"blocks.3.mlp": "bf16",
            "blocks.0.qkv": "fp32", "unembed": "fp32"}``. Kept as sorted pairs.
        weights: ``"int4"`` holds the weights of int8 parts in 4 bits; their activations stay int8.
        streams: on a GPU, which of ``"load"``, ``"low"`` and ``"high"`` get their own CUDA stream
            (`pahq_plugin.precision.streams`); other work stays on the present stream.
        masters: where the weights that low copies are made from are kept inside `mixed_precision`: in
            ``"host"`` memory, on their ``"device"``, or ``"auto"``: in host memory if that is a GPU.
            Searches that decide in FP32, and the incremental engine, need them on the device.
        budget: for the ``"hybrid"`` policy: the error allowed in an effect, relative to the larger of
            the effect and the threshold (0.02 unless given).
        operands: what the incremental engine rounds: ``"changes"`` from the present state, with
            rounding errors proportional to the change, or whole ``"values"``, as the patching backend
            and the host engine always do.
        activations: ``"high"`` rounds only weights; activations and arithmetic stay in high precision.
        kernel: ``"auto"`` multiplies with a real low-precision kernel where the device has one
            (`pahq_plugin.precision.kernels`), ``"eager"`` with the reference arithmetic, which emulates
            a format exactly but is no faster than FP32; ``"native"`` refuses a format without a kernel.

    Raises:
        ConfigError: a name is unknown, a format cannot hold activations, a guard or budget is out of
            range, a budget is given for a policy other than ``"hybrid"``, or activations stay high in
            parts without weights.
    """

    low: str = "fp8_e4m3"
    mlp: str = "bf16"
    scale: Granularity = "row"
    policy: Policy = "investigated_head"
    guard: Literal["auto"] | float = "auto"
    parts: tuple[Part, ...] = ("qkv", "output")
    operands: Literal["changes", "values"] = "changes"
    activations: Literal["low", "high"] = "low"
    kernel: Demand = "auto"
    formats: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    weights: Literal["int4"] | None = None
    budget: float | None = None
    streams: tuple[StreamName, ...] = STREAMS
    masters: Literal["auto", "device", "host"] = "auto"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "formats", tuple(sorted(dict(self.formats).items())))
        except (TypeError, ValueError):
            raise ConfigError(
                f"formats={self.formats!r} must map parts to formats, such as {{'blocks.3.mlp': 'bf16'}}"
            ) from None
        for part in dict(self.formats):
            part_and_layer(part)
        for flag, name in (("low", self.low), ("mlp", self.mlp), *self.formats):
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
        object.__setattr__(self, "parts", _names("parts", self.parts, PARTS))
        if self.operands not in ("changes", "values"):
            raise ConfigError(f'operands={self.operands!r} must be "changes" or "values"')
        if self.activations not in ("low", "high"):
            raise ConfigError(f'activations={self.activations!r} must be "low" or "high"')
        low = [part for part, used in self._formats.items() if used.is_low]
        without_weights = [part for part in low if part.endswith(("scores", "values"))]
        if self.activations == "high" and without_weights:
            raise ConfigError(
                f'activations="high" leaves nothing to round in {without_weights[0]}, which has no '
                'weights; leave it out, or use activations="low"'
            )
        check_demand(self.kernel)
        object.__setattr__(self, "streams", _names("streams", self.streams, STREAMS))
        if self.masters not in ("auto", "device", "host"):
            raise ConfigError(f'masters={self.masters!r} must be "auto", "device" or "host"')
        if self.weights not in (None, "int4"):
            raise ConfigError(
                f'weights={self.weights!r} must be "int4", or None for the formats of low and mlp'
            )
        if self.weights and "int8" not in {used.name for used in self._formats.values()}:
            raise ConfigError(f"weights='int4' needs parts in int8; low={self.low!r}, mlp={self.mlp!r}")
        if self.budget is not None and self.policy != "hybrid":
            raise ConfigError(f"budget={self.budget!r} belongs to policy='hybrid', not {self.policy!r}")
        if self.budget is not None and not (_is_number(self.budget) and 0 < self.budget < math.inf):
            raise ConfigError(
                f"budget={self.budget!r} must be a finite number above 0, for example {DEFAULT_BUDGET}"
            )

    @cached_property
    def _formats(self) -> dict[str, NumberFormat]:
        """Formats by part: a name without a layer is for all blocks, one with a layer for that block."""
        general = {part: self.low if part in self.parts else "fp32" for part in PARTS}
        named = general | {"mlp": self.mlp} | dict(self.formats)
        return {part: get_format(name) for part, name in named.items()}

    def format_of(self, part: str, layer: int | None = None) -> NumberFormat:
        """Return the format of a block's part that is not high, or of ``"unembed"``."""
        own = self._formats.get(f"blocks.{layer}.{part}")
        return self._formats[part] if own is None else own

    def activation_format(self, weights: NumberFormat) -> NumberFormat:
        """Return the format of activations in a part whose format is ``weights``."""
        return get_format("fp32") if self.activations == "high" else weights

    def weight_format(self, activations: NumberFormat) -> NumberFormat:
        """Return the format of weights that are multiplied by activations in ``activations``."""
        narrow = self.weights is not None and activations.name == "int8"
        return get_format("int4") if narrow else activations

    @property
    def is_exact(self) -> bool:
        """Whether nothing runs in low precision, so that screening is already FP32."""
        return self.policy == "full" or not any(f.is_low for f in self._formats.values())

    @property
    def only_changes(self) -> bool:
        """Whether only changes from the present state are rounded.

        Both operands of scores and values change, and logits come from whole residual streams, so these
        parts are always rounded as values.
        """
        whole = ("scores", "values", UNEMBED)
        low = (part for part, used in self._formats.items() if used.is_low)
        return self.operands == "changes" and not any(part.endswith(whole) for part in low)

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values; JSON has no infinity, so that guard is ``"inf"``."""
        guard = "inf" if self.guard == math.inf else self.guard
        return asdict(self) | {
            "parts": list(self.parts),
            "streams": list(self.streams),
            "guard": guard,
            "formats": dict(self.formats),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PrecisionConfig:
        """Restore settings that `record` wrote.

        Raises:
            ConfigError: as in the constructor.
        """
        guard = math.inf if record["guard"] == "inf" else record["guard"]
        lists = {name: tuple(record[name]) for name in ("parts", "streams")}
        return cls(**{**record, **lists, "guard": guard})

    @property
    def screens(self) -> bool:
        """Whether effects are first measured in low precision; not if every decision must be exact."""
        return not self.is_exact and self.guard != math.inf


def part_and_layer(name: str) -> tuple[str, int | None]:
    """Split a name such as ``"blocks.3.mlp"`` into part and layer; ``"unembed"`` has no layer.

    Raises:
        ConfigError: the name is not that of a part.
    """
    found = re.fullmatch(r"blocks\.(0|[1-9][0-9]*)\.(qkv|output|scores|values|mlp)", str(name))
    if found:
        return found[2], int(found[1])
    if name == UNEMBED:
        return UNEMBED, None
    raise ConfigError(
        f"formats: {name!r} is not a part; write blocks.LAYER.PART with one of qkv, output, scores, "
        f"values, mlp; or {UNEMBED}"
    )


FULL_PRECISION = PrecisionConfig(low="fp32", mlp="fp32", policy="full", guard=0.0)
"""Everything in the model's own precision."""

PAPER_PRECISION = PrecisionConfig(low="fp8_e4m3", mlp="bf16", scale="none", guard=0.0, operands="values")
"""The recipe of the PAHQ paper (arXiv 2510.23264): unscaled E4M3, BF16 MLPs, no re-evaluation."""

RTN_PRECISION = PrecisionConfig(
    low="fp8_e4m3", mlp="bf16", scale="tensor", policy="uniform", guard=0.0, operands="values"
)
"""The paper's baseline RTN-Q: every head rounded to nearest E4M3 with one scale per tensor."""


def check_precision(precision: object) -> None:
    """Refuse anything but a `PrecisionConfig` or ``None``, such as a format's name alone."""
    if precision is not None and not isinstance(precision, PrecisionConfig):
        raise ConfigError(
            f"precision={precision!r} must be a PrecisionConfig, "
            'for example PrecisionConfig(low="int8", mlp="int8")'
        )


def default_precision(device: torch.device) -> PrecisionConfig:
    """Return the settings with real kernels on ``device``.

    These are FP8 heads and BF16 MLPs on CUDA with compute capability 8.9 or higher, int8 throughout on a
    CPU with VNNI instructions, otherwise BF16 heads and FP32 MLPs.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return PrecisionConfig(low="fp8_e4m3", mlp="bf16")
    if device.type == "cpu" and cpu_has_vnni():
        return PrecisionConfig(low="int8", mlp="int8")
    return PrecisionConfig(low="bf16", mlp="fp32")
