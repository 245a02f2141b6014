"""Store weights in the format of their part, and round activations to it.

Weights are one-byte codes with scales, or FP32. ONNX Runtime keeps ``DequantizeLinear``, whereas it
would fold a ``Cast`` into FP32 at load. There is one scale per column of each head: a weight ``[head,
d_in, d_out]`` is stored as ``[head * d_in, d_out]`` in blocks of ``d_in`` rows, with one scale per block
and column.

Activations stay in FP32 unless the precision asks for low ones; then ``QuantizeLinear`` and
``DequantizeLinear`` round them, with scales computed at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_exporters.graph.builder import STORED, Builder
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import SCALE_FLOOR, NumberFormat, Quantised


class Rounding:
    """Rounds operands of matrix products in one graph, as a precision asks."""

    def __init__(self, build: Builder, precision: PrecisionConfig) -> None:
        self._build = build
        self._precision = precision

    def weight(self, name: str, weight: Tensor, used: NumberFormat) -> str:
        """Store a weight ``[head, d_in, d_out]`` or ``[d_in, d_out]`` in the format ``used``.

        Returns the FP32 value to compute with, in the same shape.
        """
        build, plain = self._build, weight.detach().float()
        if not used.is_low:
            return build.tensor(name, plain)
        made = used.quantise_weight(plain, self._precision.scale)
        if not used.needs_scale:
            return build.op("Cast", build.tensor(name, made.codes), to=1)
        if plain.ndim == 2:
            return self._dequantised(name, made.codes, _columns(made), axis=1)
        codes = made.codes.flatten(0, 1)
        flat = self._dequantised(name, codes, _columns(made), axis=0, block_size=plain.shape[1])
        return build.reshape(flat, *plain.shape)

    def side_by_side(self, name: str, weights: list[Tensor], used: NumberFormat) -> str:
        """Store weights ``[head, d_model, d_head]`` of one input as ``[d_model, n * head * d_head]``.

        Each weight keeps its own scales.
        """
        build, plain = self._build, [weight.detach().float() for weight in weights]
        if not used.is_low:
            return build.tensor(name, _beside(plain))
        made = [used.quantise_weight(weight, self._precision.scale) for weight in plain]
        codes = _beside([one.codes for one in made])
        if not used.needs_scale:
            return build.op("Cast", build.tensor(name, codes), to=1)
        scales = torch.cat([_columns(one).flatten() for one in made])
        return self._dequantised(name, codes, scales, axis=1)

    def stacked(self, name: str, weight: Tensor, used: NumberFormat) -> str:
        """Store a weight ``[head, d_head, d_model]`` that sums over heads, as ``[head * d_head,
        d_model]``."""
        if not used.is_low:
            return self._build.tensor(name, weight.detach().float().flatten(0, 1))
        return self._build.reshape(self.weight(name, weight, used), -1, weight.shape[-1])

    def _dequantised(self, name: str, codes: Tensor, scale: Tensor, **attributes: int) -> str:
        stored = self._build.tensor(name, codes), self._build.tensor(f"{name}.scale", scale)
        return self._build.op("DequantizeLinear", *stored, **attributes)

    def activation(self, x: str, used: NumberFormat, head_axis: int | None = None) -> str:
        """Round an operand of a product with a weight in the format ``used``.

        Args:
            x: the value, ``[..., contracted axis]``.
            used: format of the part.
            head_axis: the head axis, which must be 0, or ``None``.
        """
        used = self._precision.activation_format(used)
        if not used.is_low:
            return x
        build = self._build
        if not used.needs_scale:
            return build.op("Cast", build.op("Cast", x, to=STORED[used.storage]), to=1)
        shape = build.op("Shape", x)
        flat = self._by_scale(x, head_axis)
        if self._precision.scale == "none":
            scale, limit = build.constant([1.0]), build.constant(used.largest)
            flat = build.op("Clip", flat, build.op("Neg", limit), limit)
        else:
            peak = build.op("ReduceMax", build.op("Abs", flat), build.integers(1), keepdims=0)
            scale = build.op("Div", peak, build.constant(used.largest))
            scale = build.op("Max", scale, build.constant(SCALE_FLOOR))
        codes = build.op("QuantizeLinear", flat, scale, axis=0, output_dtype=STORED[used.storage])
        return build.op("Reshape", build.op("DequantizeLinear", codes, scale, axis=0), shape)

    def _by_scale(self, x: str, head_axis: int | None) -> str:
        """Reshape to ``[scale, entry]``: one row for all entries that share a scale."""
        build, kind = self._build, self._precision.scale
        if kind == "row":
            return build.reshape(x, -1, build.dimension(x, -1))
        if kind == "head" and head_axis == 0:
            return build.op("Flatten", x, axis=1)
        return build.reshape(x, 1, -1)


def _beside(weights: list[Tensor]) -> Tensor:
    """Join weights ``[head, d_in, d_out]`` to ``[d_in, n * head * d_out]``."""
    return torch.cat([weight.transpose(0, 1).flatten(1) for weight in weights], dim=1)


def _columns(made: Quantised) -> Tensor:
    """Return one scale per head and column, ``[(head,) d_out]``."""
    shape = (*made.codes.shape[:-2], 1, made.codes.shape[-1])
    return made.scale.expand(shape).squeeze(-2).contiguous()
