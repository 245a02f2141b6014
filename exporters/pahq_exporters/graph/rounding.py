"""Round the weights and activations of a part to its format.

Weights are stored in low precision. Activations stay in FP32 unless the precision asks for low ones;
then ``QuantizeLinear`` and ``DequantizeLinear`` round them, with scales computed at run time.
"""

from __future__ import annotations

from torch import Tensor

from pahq_exporters.graph.builder import STORED, Builder
from pahq_exporters.graph.weights import store
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import SCALE_FLOOR, NumberFormat


class Rounding:
    """Rounds operands of matrix products in one graph, as a precision asks."""

    def __init__(self, build: Builder, precision: PrecisionConfig) -> None:
        self._build = build
        self._precision = precision

    def weight(self, name: str, master: Tensor, part: NumberFormat) -> str:
        """Store a weight of a part in format ``part``; returns the FP32 value to compute with."""
        return store(self._build, name, master, self._held(part), self._precision.scale)

    def _held(self, part: NumberFormat) -> NumberFormat:
        return self._precision.weight_format(part)

    def activation(self, x: str, part: NumberFormat, head_axis: int | None) -> str:
        """Round an operand of a product with a weight of that part.

        Args:
            x: the value, ``[..., contracted axis]``.
            part: format of the part.
            head_axis: the head axis, which must be 0, or ``None``.
        """
        used = self._precision.activation_format(part)
        if not used.is_low:
            return x
        build = self._build
        if not used.needs_scale:
            return build.op("Cast", build.op("Cast", x, to=STORED[used.storage]), to=1)
        shape = build.op("Shape", x)
        flat = self._by_scale(x, head_axis)
        scale = self._scale(flat, used)
        codes = self._codes(flat, scale, used)
        return build.op("Reshape", build.op("DequantizeLinear", codes, scale, axis=0), shape)

    def _by_scale(self, x: str, head_axis: int | None) -> str:
        """Reshape to ``[scale, entry]``: one row for all entries that share a scale."""
        build, kind = self._build, self._precision.scale
        if kind == "row":
            width = build.dimension(x, -1)
            return build.reshape(x, -1, width)
        if kind == "head" and head_axis == 0:
            return build.op("Flatten", x, axis=1)
        return build.reshape(x, 1, -1)

    def _scale(self, flat: str, used: NumberFormat) -> str:
        """Return the scale of each row, ``[scale]``."""
        build = self._build
        if self._precision.scale == "none":
            return build.constant([1.0])
        peak = build.op("ReduceMax", build.op("Abs", flat), build.integers(1), keepdims=0)
        scale = build.op("Div", peak, build.constant(used.largest))
        return build.op("Max", scale, build.constant(SCALE_FLOOR))

    def _codes(self, flat: str, scale: str, used: NumberFormat) -> str:
        """Quantise to codes; only an unscaled format must be clamped first."""
        build = self._build
        if self._precision.scale == "none":
            limit = build.constant(used.largest)
            flat = build.op("Clip", flat, build.op("Neg", limit), limit)
        return build.op("QuantizeLinear", flat, scale, axis=0, output_dtype=STORED[used.storage])
