"""Real low-precision kernels; `pahq_plugin.precision.formats.multiply` is the reference for each.

A kernel multiplies the codes. Scales are applied to its wide result, by the same two products as in the
reference. So one kernel serves every granularity, and an integer kernel gives the reference's bits.

=======  ==============================  =====================================
name     formats and device              PyTorch function
=======  ==============================  =====================================
vnni     int8 on a CPU with AVX512-VNNI  ``torch._int_mm``, INT32 accumulation
fp8      E4M3 on CUDA >= 8.9             ``scaled_mm``, FP32 output
half     BF16, FP16 on CUDA >= 8.0       ``mm`` with FP32 output
=======  ==============================  =====================================

cuBLASLt does not multiply E5M2 by E5M2, and BF16 products of this PyTorch are slower than FP32 ones on
CPUs without AMX; these formats use the reference arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pahq_plugin.errors import ConfigError
from pahq_plugin.precision.formats import NumberFormat, Quantised, multiply

Demand = Literal["auto", "eager", "native"]
DEMANDS: tuple[Demand, ...] = ("auto", "eager", "native")

FP8_MULTIPLE = 16
"""``scaled_mm`` needs inner and outer widths that are multiples of this."""


@dataclass(frozen=True)
class Kernel:
    """Multiplies quantised activations by a quantised weight.

    Attributes:
        name: as in the module's table.
        product: multiplies codes ``[n, d_in]`` by codes ``[d_in, d_out]``, with a wide result.
        pack: lays out the codes of a weight as ``product`` needs them, once per weight.
    """

    name: str
    product: Callable[[Tensor, Tensor], Tensor]
    pack: Callable[[Tensor], Tensor] = lambda codes: codes

    def multiply(self, x: Quantised, weight: Quantised) -> Tensor:
        """Compute ``x @ weight``, codes ``[..., n, d_in]`` and ``[d_in, d_out]``, or ``[head, n, d_in]``
        and ``[head, d_in, d_out]``, as `pahq_plugin.precision.formats.multiply` does."""
        packed = self.pack(weight.codes) if weight.packed is None else weight.packed
        if packed.ndim == 2:
            out = self.product(x.codes.flatten(0, -2), packed).unflatten(0, x.codes.shape[:-1])
        else:
            heads = zip(x.codes, packed, strict=True)
            out = torch.stack([self.product(own, matrix) for own, matrix in heads])
        wide = torch.promote_types(x.scale.dtype, weight.scale.dtype)
        out = out[..., : weight.codes.shape[-1]].to(wide)
        return out.mul_(x.scale).mul_(weight.scale)


def kernel_for(
    number_format: NumberFormat, device: torch.device, demand: Demand = "auto"
) -> Kernel | None:
    """Return the kernel for operands of one format on a device, or ``None`` for the reference.

    ``"auto"`` uses a kernel if there is one, ``"eager"`` never, ``"native"`` requires one.

    Raises:
        ConfigError: ``"native"`` without a kernel; the message lists the formats that have one.
    """
    if demand == "eager":
        return None
    found = kernels_of(device).get(number_format.name)
    if found is None and demand == "native" and number_format.is_low:
        have = ", ".join(kernels_of(device)) or "none"
        raise ConfigError(
            f'kernel="native": {number_format.name} has no kernel on this {device.type} device '
            f'(formats that have one: {have}); use one of these, or kernel="auto"'
        )
    return found


def product_of(kernel: Kernel | None) -> Callable[[Quantised, Quantised], Tensor]:
    """Return the kernel's product, or the reference."""
    return multiply if kernel is None else kernel.multiply


def check_demand(name: str) -> Demand:
    """Return ``name`` if it is a demand; refuse any other with a `ConfigError`."""
    if name not in DEMANDS:
        raise ConfigError(f"unknown kernel {name!r}; known: {', '.join(DEMANDS)}")
    return name  # type: ignore[return-value]


def cpu_has_vnni() -> bool:
    """Return whether this CPU multiplies int8 with AVX512-VNNI."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(probe and probe())


def kernels_of(device: torch.device) -> dict[str, Kernel]:
    """Return the kernels of a device by format."""
    if device.type == "cpu":
        return {"int8": VNNI} if cpu_has_vnni() else {}
    if device.type != "cuda" or not hasattr(functional, "scaled_mm"):  # PyTorch before 2.10
        return {}
    capability = torch.cuda.get_device_capability(device)
    found = {"bf16": HALF, "fp16": HALF} if capability >= (8, 0) else {}
    return found | ({"fp8_e4m3": FP8} if capability >= (8, 9) else {})


def _fp8_pack(codes: Tensor) -> Tensor:
    """Pad both widths with zeros and make the layout column-major."""
    padding = (0, -codes.shape[-1] % FP8_MULTIPLE, 0, -codes.shape[-2] % FP8_MULTIPLE)
    return _pad(codes, padding).mT.contiguous().mT


def _fp8_product(x: Tensor, packed: Tensor) -> Tensor:
    if len(x) == 0:
        return x.new_zeros((0, packed.shape[-1]), dtype=torch.float32)
    one = torch.ones((), device=x.device)
    whole = functional.ScalingType.TensorWise
    return functional.scaled_mm(
        _pad(x, (0, packed.shape[-2] - x.shape[-1])).contiguous(),
        packed, one, whole, one, whole, output_dtype=torch.float32,
    )  # fmt: skip


def _pad(codes: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Append zeros along the last axes; FP8 tensors are padded as bytes."""
    if not any(padding):
        return codes
    return functional.pad(codes.view(torch.uint8), padding).view(codes.dtype)


VNNI = Kernel("vnni", torch._int_mm)  # pyright: ignore[reportPrivateImportUsage]
FP8 = Kernel("fp8", _fp8_product, _fp8_pack)
HALF = Kernel("half", partial(torch.mm, out_dtype=torch.float32))
