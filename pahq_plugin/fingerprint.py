"""A number that tells the contents of tensors apart, the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

FINGERPRINT_ENTRIES = 2**17
"""Entries that are widened to 64 bits at a time: few enough to stay in the cache."""


def fingerprint(x: Tensor) -> int:
    """A wrapping 64-bit sum of the bit patterns of ``x``, each times a multiplier of its own.

    The multiplier of an entry is the product of a scrambled row index and a scrambled column index,
    so that no permutation of entries goes unnoticed. Integer arithmetic makes the value the same on
    every machine and for any number of threads.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = x.detach().contiguous().view(integers[x.element_size()])
    matrix = bits.reshape(-1, x.shape[-1] if x.ndim else 1)
    columns = _multipliers(matrix.shape[1], 1, x.device)
    rows = _multipliers(matrix.shape[0], 2, x.device)
    step = max(1, FINGERPRINT_ENTRIES // max(1, matrix.shape[1]))
    parts = zip(matrix.split(step), rows.split(step), strict=True)
    return sum(int(((part * columns).sum(dim=1) * row).sum()) for part, row in parts) % 2**64


def _multipliers(count: int, salt: int, device: torch.device) -> Tensor:
    """Odd 64-bit numbers that look random (the scrambling of SplitMix64, Steele et al. 2014)."""
    x = (torch.arange(1, count + 1, device=device) + (salt << 40)) * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return (x ^ (x >> 31)) | 1
