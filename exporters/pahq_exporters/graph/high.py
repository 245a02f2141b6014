"""The investigated head: the one that runs in FP32.

1. ``high="input"``: chosen at run time by ``hi_layer`` and ``hi_head``. Its FP32 weights are fed as
   ``w_hi`` and are not in the file. An ``If`` in each block computes it and replaces the low-precision
   head.
2. ``high="fixed"``: chosen at export. Its FP32 weights are in the file, and there is no ``If``.
3. ``high="none"``: every head is in its own format, or all heads are in FP32.

``w_hi`` is ``[4, d_model, d_head]``: W_Q, W_K, W_V and W_O transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_exporters.graph.builder import Builder


def packed_weights(attn: Any, head: int) -> Tensor:
    """Return the FP32 weights of one head, ``[4, d_model, d_head]``."""
    own = [attn.W_Q[head], attn.W_K[head], attn.W_V[head], attn.W_O[head].T]
    return torch.stack([weight.detach().float().cpu() for weight in own])


def fed_weights(build: Builder) -> tuple[list[str], str]:
    """Return the four weights in ``w_hi`` and the index of their head, ``[1]``."""
    weights = [build.op("Gather", "w_hi", build.scalar(i), axis=0) for i in range(4)]
    return weights, build.reshape("hi_head", 1)
