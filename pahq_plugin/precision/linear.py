"""Products with weights, low for most heads and high for the investigated ones.

1. Quantise the input and multiply it by the low copy of the weight, for all heads at once.
2. Multiply the input of the high heads by their own weights, in high precision.
3. Replace the low results of the high heads by these.

Each head reads its own slice of the input, so that patches into every head take effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pahq_plugin.precision.formats import Granularity, NumberFormat, Quantised, high_dtype
from pahq_plugin.precision.kernels import Demand, Kernel, kernel_for, product_of
from pahq_plugin.precision.streams import INLINE, Streams


class _LowProduct(torch.autograd.Function):
    """``x @ weight`` on quantised operands; the backward pass treats rounding as the identity.

    The gradient is a full-precision product with the dequantised operands (a straight-through
    estimator). A plain cast would also round the gradient, and E4M3 turns 1e-4 into 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        master: Tensor | None,
        low_x: Quantised,
        low_weight: Quantised,
        kernel: Kernel | None,
    ) -> Tensor:
        ctx.save_for_backward(low_x.codes, low_x.scale, low_weight.codes, low_weight.scale)
        ctx.dtypes = (x.dtype, None if master is None else master.dtype)
        return product_of(kernel)(low_x, low_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        codes_x, scale_x, codes_w, scale_w = ctx.saved_tensors
        x = Quantised(codes_x, scale_x).dequantise()
        weight = Quantised(codes_w, scale_w).dequantise()
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight.mT).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            grad_w = (x.mT @ grad).sum_to_size(weight.shape).to(ctx.dtypes[1])
        return grad_x, grad_w, None, None, None


def low_product(
    x: Tensor,
    master: Tensor | None,
    low_weight: Quantised,
    number_format: NumberFormat,
    granularity: Granularity,
    head_axis: int | None = None,
    demand: Demand = "auto",
) -> Tensor:
    """Compute ``x @ weight``, ``[..., n, d_out]`` in FP32, or FP64 for an FP64 model.

    Args:
        x: ``[..., n, d_in]``, rounded to ``number_format``; ``head_axis`` is its axis of heads, if any.
        master: ``[..., d_in, d_out]``, the weight that receives gradients; ``None`` for no gradients.
        low_weight: its low copy.
    """
    low_x = number_format.quantise_activation(x.detach(), granularity, head_axis)
    kernel = kernel_for(number_format, x.device, demand)
    return _LowProduct.apply(x, master, low_x, low_weight, kernel)  # type: ignore[no-any-return]


def high_product(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``x @ weight`` in the model's dtype, at least FP32."""
    dtype = high_dtype(weight.dtype)
    return x.to(dtype) @ weight.to(dtype)


def project_heads(
    x: Tensor,
    master: Tensor,
    low_weight: Quantised | None,
    high_heads: Sequence[int],
    number_format: NumberFormat,
    granularity: Granularity,
    demand: Demand = "auto",
    high_weight: Callable[[], Tensor] | None = None,
    streams: Streams = INLINE,
) -> Tensor:
    """Multiply each head's input by that head's weight.

    Args:
        x: ``[batch, pos, head, d_in]``.
        master: ``[head, d_in, d_out]``, the weight that receives gradients.
        low_weight: its low copy, or ``None`` if all heads are high.
        high_heads: heads that run in high precision.
        number_format: format of the other heads.
        high_weight: returns the weights of the high heads, or of all if all are high; by default those
            of ``master``.
        streams: on a GPU, low and high products run side by side on these.

    Returns:
        ``[batch, pos, head, d_out]`` in FP32, or FP64 for an FP64 model.
    """
    by_head = x.permute(2, 0, 1, 3).flatten(1, 2)  # [head, batch * pos, d_in]
    if low_weight is None:
        out = high_product(by_head, master if high_weight is None else high_weight())
    elif not high_heads:
        out = low_product(by_head, master, low_weight, number_format, granularity, 0, demand)
    else:
        with streams.on("low", by_head):
            out = low_product(by_head, master, low_weight, number_format, granularity, 0, demand)
        weight = master[list(high_heads)] if high_weight is None else high_weight()
        with streams.on("high", by_head, weight):
            index = torch.tensor(high_heads, device=x.device)
            high = high_product(by_head[index], weight)
        streams.join("low", out)
        streams.join("high", high, index)
        out = out.index_copy(0, index, high.to(out.dtype))
    return out.unflatten(1, (x.shape[0], x.shape[1])).permute(1, 2, 0, 3)


def rounded(
    x: Tensor,
    number_format: NumberFormat,
    granularity: Granularity,
    head_axis: int,
    high_heads: Sequence[int] = (),
) -> Tensor:
    """Round an operand of a product of two activations to ``number_format``, except in high heads.

    The product sums over the last axis of ``x``. The result has the shape and dtype of ``x``; gradients
    pass straight through.
    """
    low = number_format.quantise_activation(x.detach(), granularity, head_axis).dequantise()
    low = low.to(x.dtype)
    for head in high_heads:
        low.select(head_axis, head).copy_(x.detach().select(head_axis, head))
    return x + (low - x.detach()) if x.requires_grad else low
