"""The first product of an MLP when its input changes in few directions.

An MLP multiplies its normalised input, of width d_model, by W_in. If only heads change that input, each
by ``dz W_O`` with dz of width d_head,

    norm(x + sum dz W_O) W_in = ((x - mean(x)) w W_in + sum dz (W_O F)) / size + b W_in

where ``F`` is W_in folded with the norm's centring and its weight w, and ``size`` is the norm's divisor.
``W_O F`` is computed once per head and MLP, and the first term once for all rows, so that the product
of each row has width d_head for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.memo import Memo
from pahq_plugin.models.blocks import LinearNorm, linear_norm
from pahq_plugin.models.supported import LOW_PRECISION
from pahq_plugin.precision.modules import activate, first_weights


class NarrowMlp:
    """MLP outputs from changes of heads, in the model's own precision.

    Args:
        blocks: blocks of a borrowed model, whose weights do not change during this object's lifetime.
        width: d_model.
        memo_bytes: bytes for memoised maps.
    """

    def __init__(self, blocks: Sequence[Any], width: int, memo_bytes: int) -> None:
        self._blocks = blocks
        self._width = width
        self._maps: Memo[Tensor] = Memo(memo_bytes)

    def next_round(self) -> None:
        """Tell the memo that a pass begins."""
        self._maps.next_round()

    def pays(self, layer: int, width: int) -> bool:
        """Return whether this is faster for changes of total ``width``, and the MLP is supported."""
        block = self._blocks[layer]
        known = type(block.mlp).__name__ in LOW_PRECISION.mlps and linear_norm(block.ln2) is not None
        return known and 2 * width <= self._width

    def __call__(
        self, layer: int, x: Tensor, x_now: Tensor, heads: Sequence[tuple[int, int]], dz: Tensor
    ) -> Tensor:
        """Compute MLP outputs, ``[candidate, n, d_model]``.

        Args:
            layer: the MLP's block.
            x: inputs of all rows, ``[candidate, n, d_model]``.
            x_now: present inputs, ``[n, d_model]``.
            heads: (layer, head) of the heads that change.
            dz: their changes of z, concatenated, ``[candidate, n, head * d_head]``.
        """
        norm = linear_norm(self._blocks[layer].ln2)
        assert norm is not None  # see `pays`
        inverse, direction = norm.inverse_size(x), norm.direction(x_now)
        entries = {}
        for name in first_weights(self._blocks[layer].mlp):
            maps = [self._map(layer, name, norm, *head) for head in heads]
            entry = dz @ torch.cat(maps)
            weight = getattr(self._blocks[layer].mlp, name)
            entry += direction @ weight
            if inverse is not None:
                entry *= inverse
            entries[name] = entry if norm.b is None else entry.add_(norm.b @ weight)
        mlp: Any = self._blocks[layer].mlp
        post = activate(mlp, entries)
        return torch.addmm(mlp.b_out, post.flatten(0, 1), mlp.W_out).unflatten(0, post.shape[:2])

    def _map(self, layer: int, name: str, norm: LinearNorm, source: int, head: int) -> Tensor:
        """Return the map from a head's z to the hidden layer of an MLP, ``[d_head, d_mlp]``."""
        key = (layer, name, source, head)
        found = self._maps.get(key)
        if found is None:
            folded = norm.fold(self._blocks[source].attn.W_O[head])
            found = folded @ getattr(self._blocks[layer].mlp, name)
            self._maps.put(key, found)
        return found
