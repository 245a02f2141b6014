"""Store weights in the file: one-byte codes with scales, or FP32.

ONNX Runtime keeps ``DequantizeLinear``, whereas it would fold a ``Cast`` into FP32 at load. There is one
scale per column of each head: a weight ``[head, d_in, d_out]`` is stored as ``[head * d_in, d_out]`` in
blocks of ``d_in`` rows, with one scale per block and column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_exporters.graph.builder import Builder
from pahq_plugin.precision.formats import Granularity, NumberFormat, Quantised


def store(
    build: Builder, name: str, weight: Tensor, number_format: NumberFormat, scale: Granularity
) -> str:
    """Add a weight to the graph.

    Args:
        build: the graph.
        name: name of its initialisers, such as ``"blocks.0.attn.W_Q"``.
        weight: ``[head, d_in, d_out]`` or ``[d_in, d_out]``.
        number_format: format to store it in.
        scale: which entries share a scale.

    Returns:
        The FP32 value that the graph computes with, in the same shape.
    """
    plain = weight.detach().float()
    if not number_format.is_low:
        return build.tensor(name, plain)
    codes = number_format.quantise_weight(plain, scale)
    if not number_format.needs_scale:
        return build.op("Cast", build.tensor(name, codes.codes), to=1)
    if plain.ndim == 2:
        return _dequantised(build, name, codes.codes, _columns(codes), axis=1)
    head, d_in, d_out = plain.shape
    flat = _dequantised(
        build, name, codes.codes.reshape(head * d_in, d_out), _columns(codes), axis=0, block_size=d_in
    )
    return build.reshape(flat, head, d_in, d_out)


def store_side_by_side(
    build: Builder, name: str, weights: list[Tensor], number_format: NumberFormat, scale: Granularity
) -> str:
    """Add weights ``[head, d_model, d_head]`` of one input as one ``[d_model, n * head * d_head]``.

    Each weight keeps its own scales.
    """
    plain = [weight.detach().float() for weight in weights]
    if not number_format.is_low:
        return build.tensor(name, _beside(plain))
    made = [number_format.quantise_weight(weight, scale) for weight in plain]
    codes = _beside([one.codes for one in made])
    if not number_format.needs_scale:
        return build.op("Cast", build.tensor(name, codes), to=1)
    scales = torch.cat([_columns(one).flatten() for one in made])
    return _dequantised(build, name, codes, scales, axis=1)


def store_stacked(
    build: Builder, name: str, weight: Tensor, number_format: NumberFormat, scale: Granularity
) -> str:
    """Add a weight ``[head, d_head, d_model]`` as ``[head * d_head, d_model]``: it sums over heads."""
    if not number_format.is_low:
        return build.tensor(name, weight.detach().float().flatten(0, 1))
    return build.reshape(store(build, name, weight, number_format, scale), -1, weight.shape[-1])


def _beside(weights: list[Tensor]) -> Tensor:
    """Join weights ``[head, d_in, d_out]`` to ``[d_in, n * head * d_out]``."""
    return torch.cat([weight.transpose(0, 1).flatten(1) for weight in weights], dim=1)


def _columns(made: Quantised) -> Tensor:
    """Return one scale per head and column, ``[(head,) d_out]``."""
    shape = (*made.codes.shape[:-2], 1, made.codes.shape[-1])
    return made.scale.expand(shape).squeeze(-2).contiguous()


def _dequantised(build: Builder, name: str, codes: Tensor, scale: Tensor, **attributes: int) -> str:
    return build.op(
        "DequantizeLinear",
        build.tensor(name, codes),
        build.tensor(f"{name}.scale", scale),
        **attributes,
    )
