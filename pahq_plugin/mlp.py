"""MLPs in a number format of their own: the plain and the gated kind of TransformerLens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pahq_plugin.attention import Investigation
from pahq_plugin.errors import ModelError
from pahq_plugin.linear import high_product, low_product

SUPPORTED = ("MLP", "GatedMLP")


def check_mlp(module: nn.Module, layer: int) -> None:
    """
    Raises:
        ModelError: an MLP of a kind that has no mixed-precision forward.
    """
    if type(module).__name__ not in SUPPORTED:
        raise ModelError(
            f"blocks.{layer}.mlp is a {type(module).__name__}; mixed precision knows "
            f'{" and ".join(SUPPORTED)}; pass PrecisionConfig(mlp="fp32") to leave it as it is'
        )


def first_weights(mlp: Any) -> list[str]:
    """Names of the weights that a TransformerLens MLP multiplies its input with."""
    return [name for name in ("W_in", "W_gate") if hasattr(mlp, name)]


def activate(mlp: Any, entries: dict[str, Tensor]) -> Tensor:
    """What the MLP's last weight is applied to, ``[..., d_mlp]``.

    Args:
        mlp: a TransformerLens MLP, plain or gated.
        entries: the input times ``"W_in"``, and times ``"W_gate"`` if it is gated, without bias.
    """
    gated = "W_gate" in entries
    pre = mlp.hook_pre(entries["W_gate"] if gated else entries["W_in"] + mlp.b_in)
    post = mlp.act_fn(pre)
    if mlp.cfg.is_layer_norm_activation():
        post = mlp.ln(mlp.hook_mid(post))
    elif gated:
        post = post * mlp.hook_pre_linear(entries["W_in"]) + mlp.b_in
    return mlp.hook_post(post)


@dataclass
class MixedMLP:
    """Stands in for the ``forward`` of one TransformerLens MLP.

    Attributes:
        module: the MLP, whose weights stay the masters.
        layer: its block.
        shared: the backend's state.
    """

    module: nn.Module
    layer: int
    shared: Investigation

    def __call__(self, x: Tensor) -> Tensor:
        """MLP output; ``x`` and the result are ``[batch, pos, d_model]``."""
        mlp: Any = self.module
        post = activate(mlp, {name: self._project(name, x) for name in first_weights(mlp)})
        return (self._project("W_out", post) + mlp.b_out).to(mlp.cfg.dtype)

    def _project(self, name: str, x: Tensor) -> Tensor:
        shared = self.shared
        precision, high = shared.precision, shared.high
        key, master = f"blocks.{self.layer}.mlp.{name}", getattr(self.module, name)
        number_format = precision.format_of("mlp", self.layer)
        if high.everything or self.layer in high.mlps or not number_format.is_low:
            return high_product(x, shared.masters.get(key, master))
        low = shared.low_copy(key, master, number_format)
        used = precision.activation_format(number_format)
        return low_product(x, master, low, used, precision.scale, demand=precision.kernel)
