"""Number formats: how a tensor is scaled, rounded to few bits, and multiplied.

A format is a small frozen value. For a tensor ``x`` and the axes that share one scale:

1. ``scale = max |x| / largest value of the format`` (at least the smallest normal FP32 number);
2. ``codes = round(clamp(x / scale))`` in the format's storage type, ties to even;
3. ``x ~ codes * scale``.

Products of two quantised tensors are accumulated in FP32 (integers exactly) and scaled once at the
end, so that only the operands are rounded to few bits. This eager arithmetic runs on every device and
is the reference that faster kernels have to agree with.

Which entries share a scale is the *granularity*:

========  =============================  =================================
name      weight ``[head, d_in, d_out]``  activation ``[..., head, d_in]``
========  =============================  =================================
row       ``[head, 1, d_out]``            ``[..., head, 1]``
head      ``[head, 1, 1]``                ``[1, ..., head, 1]``
tensor    ``[1, 1, 1]``                   ``[1, ..., 1, 1]``
none      one scale of 1: values are only clamped and cast
========  =============================  =================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pahq_plugin.errors import ConfigError, FormatError
from pahq_plugin.system.plugins import is_reference, referred

Granularity = Literal["row", "head", "tensor", "none"]
GRANULARITIES: tuple[Granularity, ...] = ("row", "head", "tensor", "none")

SCALE_FLOOR = torch.finfo(torch.float32).tiny
"""The smallest scale; without it an all-zero slice would divide zero by zero."""

FP32_EXACT_INTEGERS = 2**24
"""FP32 adds integers exactly as long as every partial sum stays below this."""


@dataclass(frozen=True)
class Quantised:
    """A tensor in low precision: ``value ~ codes * scale``.

    Attributes:
        codes: in the format's storage dtype, the shape of the original tensor.
        scale: FP32 (FP64 for FP64 input), broadcastable against ``codes``.
        packed: a weight's codes in the layout of a kernel (`pahq_plugin.precision.kernels`), if it
            differs; ``codes`` is then a view of it.
    """

    codes: Tensor
    scale: Tensor
    packed: Tensor | None = None

    def dequantise(self) -> Tensor:
        """Return the represented values, in the scale's dtype and the shape of ``codes``."""
        return self.codes.to(self.scale.dtype) * self.scale

    def columns(self, which: slice) -> Quantised:
        """Select columns of a weight ``[d_in, d_out]``; the last ones keep the padding of ``packed``."""
        first, last, _ = which.indices(self.codes.shape[-1])
        scale = self.scale if self.scale.shape[-1] == 1 else self.scale[:, first:last]
        packed = self.packed
        if packed is not None:
            packed = packed[:, first : None if last == self.codes.shape[-1] else last]
        return Quantised(self.codes[:, first:last], scale, packed)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return (self.codes if self.packed is None else self.packed).nbytes + self.scale.nbytes


@dataclass(frozen=True)
class NumberFormat:
    """One number format.

    Attributes:
        name: the key in `FORMATS`.
        bits: bits of one code.
        storage: dtype that holds the codes; int4 uses one int8 per code.
        largest: largest finite value; larger magnitudes are clamped to it.
        activations: whether it can hold activations (int4 is for weights only).
    """

    name: str
    bits: int
    storage: torch.dtype
    largest: float
    activations: bool = True

    @property
    def is_integer(self) -> bool:
        """Whether the codes are integers."""
        return not self.storage.is_floating_point

    @property
    def is_low(self) -> bool:
        """Whether the format has fewer bits than FP32."""
        return self.bits < 32

    @property
    def needs_scale(self) -> bool:
        """Whether scaling matters; 16-bit floats and FP32 hold a model's values without it."""
        return self.bits <= 8

    def scale(self, x: Tensor, shared: tuple[int, ...] | None) -> Tensor:
        """Compute the scale of each slice of ``x``.

        Args:
            x: any shape, a floating dtype.
            shared: axes that share one scale; ``None`` for no scaling (a scale of 1).

        Returns:
            FP32 (FP64 for FP64 input), the shape of ``x`` with the shared axes reduced to 1. NaN or
            infinity in a slice becomes its scale, so that it stays visible.
        """
        wide = high_dtype(x.dtype)
        if shared is None or not self.needs_scale or x.numel() == 0:
            return torch.ones([1] * x.ndim, dtype=wide, device=x.device)
        peak = x.to(wide).abs().amax(dim=shared, keepdim=True)
        return (peak / self.largest).clamp_min(SCALE_FLOOR)

    def cast(self, x: Tensor) -> Tensor:
        """Return the codes of values that are already scaled: clamp, round ties to even, store.

        The clamp comes first because PyTorch releases disagree on the result of an overflowing FP8
        cast. In a floating format infinity becomes NaN, since saturation would hide it. Integers have
        no NaN; `quantise` marks such a slice through its scale.
        """
        clamped = x.clamp(-self.largest, self.largest)
        if self.is_integer:
            return clamped.nan_to_num(nan=0.0).round().to(self.storage)
        if x.dtype is torch.float64 and self.storage is not torch.float32:
            clamped = _round_to_odd(clamped)
        return torch.where(x.isfinite(), clamped, torch.nan).to(self.storage)

    def quantise(self, x: Tensor, shared: tuple[int, ...] | None) -> Quantised:
        """Scale and cast ``x``; arguments as in `scale`.

        An integer format turns a slice with NaN or infinity into NaN values (through its scale),
        never into plausible numbers.
        """
        scale = self.scale(x, shared)
        scaled = x.to(scale.dtype) / scale
        if self.is_integer and shared is not None:  # within the format's range by its scale
            return Quantised(scaled.round_().to(self.storage), scale)
        if self.is_integer:
            scale = torch.where(x.isfinite().all(), scale, torch.nan)
        return Quantised(self.cast(scaled), scale)

    def quantise_weight(self, weight: Tensor, granularity: Granularity) -> Quantised:
        """Quantise ``[head, d_in, d_out]`` or ``[d_in, d_out]`` with scales as in the module's table.

        Raises:
            FormatError: the weight holds NaN or infinity.
        """
        if not bool(torch.isfinite(weight).all()):
            raise FormatError(f"{self.name} cannot hold a weight with NaN or infinite entries")
        axes: dict[str, tuple[int, ...] | None] = {
            "row": (-2,),
            "head": (-2, -1),
            "tensor": tuple(range(weight.ndim)),
            "none": None,
        }
        return self.quantise(weight, axes[check_granularity(granularity)])

    def quantise_activation(
        self, x: Tensor, granularity: Granularity, head_axis: int | None = None
    ) -> Quantised:
        """Quantise ``[..., d_in]`` with scales as in the module's table.

        Args:
            x: activations; products sum over the last axis.
            granularity: which entries share a scale.
            head_axis: the axis of heads, which ``"head"`` scales separately; ``None`` without one.

        Raises:
            ConfigError: the format is for weights only.
        """
        if not self.activations:
            raise ConfigError(
                f"{self.name} holds weights only; use int8 or an FP8 format for activations"
            )
        every = tuple(range(x.ndim))
        axes: dict[str, tuple[int, ...] | None] = {
            "row": (-1,),
            "head": tuple(i for i in every if head_axis is None or i != head_axis % x.ndim),
            "tensor": every,
            "none": None,
        }
        return self.quantise(x, axes[check_granularity(granularity)])

    def round_trip(self, x: Tensor, shared: tuple[int, ...] | None = None) -> Tensor:
        """Round ``x`` to values of the format; returns FP32, or the dtype of ``x`` if wider."""
        return self.quantise(x, shared).dequantise()


def _round_to_odd(x: Tensor) -> Tensor:
    """Round FP64 to FP32 such that rounding again to fewer bits equals rounding only once.

    PyTorch casts FP64 to 8 and 16 bits via FP32, which rounds twice. A value that FP32 cannot hold
    becomes its neighbour with an odd last bit, which no narrower format mistakes for a tie (Boldo and
    Melquiond 2008).
    """
    nearest = x.float()
    bits = nearest.view(torch.int32)
    bits = torch.where(nearest.double().abs() > x.abs(), bits - 1, bits)  # towards zero
    return torch.where(nearest.double() != x, bits | 1, bits).view(torch.float32)


def high_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of "high precision" for a model in ``dtype``: that dtype, at least FP32."""
    return torch.promote_types(dtype, torch.float32)


def multiply(x: Quantised, weight: Quantised) -> Tensor:
    """Compute ``x @ weight`` with high-precision accumulation.

    Args:
        x: codes ``[..., n, d_in]``, scale constant along ``d_in``.
        weight: codes ``[..., d_in, d_out]``, scale constant along ``d_in``.

    Returns:
        ``[..., n, d_out]`` in the scales' dtype. Integer codes are summed exactly.
    """
    wide = summed = torch.promote_types(x.scale.dtype, weight.scale.dtype)
    are_integers = not (x.codes.is_floating_point() or weight.codes.is_floating_point())
    if are_integers and 127 * 127 * x.codes.shape[-1] >= FP32_EXACT_INTEGERS:
        summed = torch.float64
    return (x.codes.to(summed) @ weight.codes.to(summed)).to(wide) * x.scale * weight.scale


def check_granularity(name: str) -> Granularity:
    """Return ``name`` if it is a granularity; refuse any other with a `ConfigError`."""
    if name not in GRANULARITIES:
        raise ConfigError(f"unknown scale {name!r}; known: {', '.join(GRANULARITIES)}")
    return name  # type: ignore[return-value]


FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat("fp32", 32, torch.float32, torch.finfo(torch.float32).max),
        NumberFormat("bf16", 16, torch.bfloat16, torch.finfo(torch.bfloat16).max),
        NumberFormat("fp16", 16, torch.float16, torch.finfo(torch.float16).max),
        NumberFormat("fp8_e4m3", 8, torch.float8_e4m3fn, 448.0),
        NumberFormat("fp8_e5m2", 8, torch.float8_e5m2, 57344.0),
        NumberFormat("int8", 8, torch.int8, 127.0),
        NumberFormat("int4", 4, torch.int8, 7.0, activations=False),
    )
}


def get_format(name: str) -> NumberFormat:
    """Return the format of that name.

    Raises:
        ConfigError: there is no such format; the message lists the known ones.
    """
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    if is_reference(name):
        return referred(name, NumberFormat)
    raise ConfigError(f"unknown number format {name!r}; known: {', '.join(FORMATS)}")
