"""The investigated head: the one that runs in FP32.

1. ``high="input"``: chosen at run time by ``hi_layer`` and ``hi_head``. Its FP32 weights are fed as
   ``w_hi`` and are not in the file. An ``If`` in each block computes it and replaces the low-precision
   head.
2. ``high="fixed"``: chosen at export. Its FP32 weights are in the file, and there is no ``If``.
3. ``high="none"``: every head is in its own format, or all heads are in FP32.

``w_hi`` is ``[4, d_model, d_head]``: W_Q, W_K, W_V and W_O transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pahq_exporters.description import HighKind
from pahq_exporters.graph.builder import Builder
from pahq_plugin.host import PatchableModel

Q, K, V, O = range(4)  # noqa: E741


def packed_weights(attn: Any, head: int) -> Tensor:
    """Return the FP32 weights of one head, ``[4, d_model, d_head]``."""
    own = [attn.W_Q[head], attn.W_K[head], attn.W_V[head], attn.W_O[head].T]
    return torch.stack([weight.detach().float().cpu() for weight in own])


@dataclass
class HighHead:
    """Computes the investigated head of a graph.

    Attributes:
        build: the graph.
        model: the exported model.
        kind: one of the three ways above.
        fixed: the head ``(layer, head)`` chosen at export.
    """

    build: Builder
    model: PatchableModel
    kind: HighKind
    fixed: tuple[int, int] | None = None

    def replace(
        self,
        layer: int,
        low: list[str],
        high: Callable[[list[str], str], list[str]],
    ) -> list[str]:
        """Return values ``[head, ...]`` of one block, with those of the investigated head in FP32.

        Args:
            layer: the block.
            low: low-precision values of all heads.
            high: function from the weights ``[d_model, d_head]`` of Q, K, V and O and the head's index
                ``[1]`` to the same values of that head, ``[...]``.
        """
        if self.kind == "none" or (self.fixed is not None and self.fixed[0] != layer):
            return low
        if self.fixed is not None:
            return self._put(low, high(*self._fixed_weights(layer)))
        build = self.build
        here = build.op("Equal", "hi_layer", build.scalar(layer))
        return build.branch(here, lambda: self._put(low, high(*self.fed_weights())), lambda: low)

    def fed_weights(self) -> tuple[list[str], str]:
        """Return the four weights in ``w_hi`` and the index of their head, ``[1]``."""
        build = self.build
        weights = [build.op("Gather", "w_hi", build.scalar(i), axis=0) for i in range(4)]
        return weights, build.reshape("hi_head", 1)

    def _fixed_weights(self, layer: int) -> tuple[list[str], str]:
        build, (_, head) = self.build, self.fixed or (0, 0)
        packed = packed_weights(self.model.blocks[layer].attn, head)
        names = [f"blocks.{layer}.attn.high.{letter}" for letter in "QKVO"]
        weights = [build.tensor(*pair) for pair in zip(names, packed, strict=True)]
        return weights, build.integers(head)

    def _put(self, low: list[str], high: list[str]) -> list[str]:
        build = self.build
        index = build.reshape("hi_head", 1, 1) if self.fixed is None else build.constant(
            [[self.fixed[1]]], int
        )  # fmt: skip
        return [
            build.op("ScatterND", all_heads, index, build.op("Unsqueeze", one, build.integers(0)))
            for all_heads, one in zip(low, high, strict=True)
        ]
