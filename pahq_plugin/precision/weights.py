"""Low-precision copies of weights, made once, and again when the weights change.

A write through ``.data`` does not change a tensor's version counter, so a copy is checked against the
*content* of its master: an integer sum over the bit patterns, at a fraction of the cost of the following
product. Copies are ordinary tensors even if first requested under ``torch.inference_mode``, since
autograd may need them later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pahq_plugin.precision.formats import Granularity, NumberFormat, Quantised
from pahq_plugin.precision.kernels import Demand, kernel_for
from pahq_plugin.system.fingerprint import fingerprint


@dataclass
class LowWeights:
    """Quantised weights by name, laid out for a kernel."""

    granularity: Granularity
    kernel: Demand = "auto"
    _copies: dict[tuple[str, str], tuple[int, Quantised]] = field(default_factory=dict)

    def get(self, name: str, master: Tensor, number_format: NumberFormat) -> Quantised:
        """Return the copy of a weight ``[head, d_in, d_out]`` or ``[d_in, d_out]``, up to date with it.

        Raises:
            FormatError: ``master`` holds NaN or infinity.
        """
        key = (name, number_format.name)
        content = fingerprint(master)
        if key not in self._copies or self._copies[key][0] != content:
            with torch.inference_mode(False), torch.no_grad():
                plain = master.detach().clone() if master.is_inference() else master.detach()
                copy = number_format.quantise_weight(plain, self.granularity)
                self._copies[key] = (content, self._packed(copy, number_format))
        return self._copies[key][1]

    def made(self, name: str, number_format: NumberFormat) -> Quantised:
        """Return a copy that `get` has made, without checking: nothing can write to its master now."""
        return self._copies[name, number_format.name][1]

    def _packed(self, copy: Quantised, number_format: NumberFormat) -> Quantised:
        """Lay out the copy for its kernel: padded at the end, with the codes as a view of it."""
        kernel = kernel_for(number_format, copy.codes.device, self.kernel)
        packed = copy.codes if kernel is None else kernel.pack(copy.codes)
        if packed is copy.codes:
            return copy
        d_in, d_out = copy.codes.shape[-2:]
        return replace(copy, codes=packed[..., :d_in, :d_out], packed=packed)

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(copy.nbytes for _, copy in self._copies.values())
