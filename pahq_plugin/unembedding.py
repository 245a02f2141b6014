"""The unembedding in a number format of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pahq_plugin.attention import Investigation
from pahq_plugin.linear import high_product, low_product

WEIGHT = "unembed.W_U"


@dataclass
class MixedUnembedding:
    """Stands in for the ``forward`` of a TransformerLens unembedding.

    Attributes:
        module: the unembedding, whose weight stays the master.
        shared: the backend's state.
    """

    module: nn.Module
    shared: Investigation

    def __call__(self, residual: Tensor) -> Tensor:
        """Logits ``[..., d_vocab]`` of ``residual [..., d_model]``."""
        module: Any = self.module
        shared, precision = self.shared, self.shared.precision
        number_format = precision.format_of("unembed")
        if is_high(shared):
            logits = high_product(residual, shared.masters.get(WEIGHT, module.W_U))
        else:
            copy = shared.low_copy(WEIGHT, module.W_U, number_format)
            logits = low_product(
                residual,
                module.W_U,
                copy,
                precision.activation_format(number_format),
                precision.scale,
                demand=precision.kernel,
            )
        return (logits + module.b_U).to(module.cfg.dtype)


def is_high(shared: Investigation) -> bool:
    """Whether the unembedding is high at present."""
    high, number_format = shared.high, shared.precision.format_of("unembed")
    return high.everything or high.unembed or not number_format.is_low
