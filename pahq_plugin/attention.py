"""Attention with a number format of its own for every head.

1. Q, K and V of each head from its own split input, low or high (`pahq_plugin.linear`).
2. Rotation, scores, mask, softmax and value mix by the model's own methods, accumulated in high
   precision; the operands of scores and value mix are rounded where the configuration says so.
3. The output projection of each head, low or high.

Every TransformerLens hook point is called as the model's own forward calls it, so that the host's
wrappers patch, record and differentiate as they always do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from pahq_plugin.config import PrecisionConfig
from pahq_plugin.formats import NumberFormat, Quantised, high_dtype
from pahq_plugin.linear import project_heads, rounded
from pahq_plugin.masters import Masters
from pahq_plugin.policy import NOTHING, HighParts
from pahq_plugin.streams import Streams
from pahq_plugin.weights import LowWeights


@dataclass
class Investigation:
    """What a backend's modules share: the precision, weights, streams, and the parts that are high at
    present."""

    precision: PrecisionConfig
    weights: LowWeights
    streams: Streams
    masters: Masters
    high: HighParts = NOTHING

    def low_copy(self, name: str, master: Tensor, number_format: NumberFormat) -> Quantised:
        """The low copy of a weight for activations in ``number_format``."""
        held = self.precision.weight_format(number_format)
        if self.masters.is_away(name):
            return self.weights.made(name, held)
        return self.weights.get(name, master, held)


def investigation(precision: PrecisionConfig, device: torch.device) -> Investigation:
    """What a backend on ``device`` begins with."""
    streams = Streams(device, precision.streams)
    weights = LowWeights(precision.scale, precision.kernel)
    return Investigation(precision, weights, streams, Masters(streams))


@dataclass
class MixedAttention:
    """Stands in for the ``forward`` of one TransformerLens attention module.

    Attributes:
        module: the attention module, whose weights stay the masters.
        layer: its block.
        shared: the backend's state.
    """

    module: nn.Module
    layer: int
    shared: Investigation

    def __call__(
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: Any = None,
        additive_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
    ) -> Tensor:
        """Attention output ``[batch, pos, d_model]``.

        Args:
            query_input: ``[batch, pos, head, d_model]``; ``key_input`` and ``value_input`` alike.
            past_kv_cache_entry: keys and values of a common prefix, or ``None``.
            additive_attention_mask: added to the scores, ``[batch, 1, 1, key_pos]``.
            attention_mask: 1 for tokens, 0 for padding, ``[batch, offset_pos]``.
            position_bias: unused; TransformerLens passes it to encoder-decoder models alone.
        """
        attn: Any = self.module
        q = attn.hook_q(self._project("W_Q", query_input, "qkv") + attn.b_Q)
        k = attn.hook_k(self._project("W_K", key_input, "qkv") + attn.b_K)
        v = attn.hook_v(self._project("W_V", value_input, "qkv") + attn.b_V)

        offset = 0
        if past_kv_cache_entry is not None:
            offset = past_kv_cache_entry.past_keys.size(1)
            k, v = past_kv_cache_entry.append(k, v)
        if attn.cfg.positional_embedding_type == "rotary":
            q = attn.hook_rot_q(attn.apply_rotary(q, offset, attention_mask))
            k = attn.hook_rot_k(attn.apply_rotary(k, 0, attention_mask))

        q, k = (self._rounded(x, "scores", head_axis=2) for x in (q, k))
        scores = attn.calculate_attention_scores(q, k)  # [batch, head, query_pos, key_pos]
        if attn.cfg.positional_embedding_type == "alibi":
            scores = scores + self._alibi(scores)
        if attn.cfg.attention_dir == "causal":
            scores = attn.apply_causal_mask(scores, offset, attention_mask)
        if additive_attention_mask is not None:
            scores = scores + additive_attention_mask
        pattern = softmax(attn.hook_attn_scores(scores), dim=-1)
        pattern = attn.hook_pattern(torch.where(pattern.isnan(), 0.0, pattern))
        pattern = self._rounded(pattern, "values", head_axis=1)  # summed over keys, as are the values
        v = self._rounded(v.transpose(1, 3), "values", head_axis=2).transpose(1, 3)
        z = attn.calculate_z_scores(v, pattern)  # [batch, pos, head, d_head]

        result = attn.hook_result(self._project("W_O", z, "output").to(attn.cfg.dtype))
        return result.sum(dim=2) + attn.b_O

    def _project(self, name: str, x: Tensor, part: str) -> Tensor:
        """``x [batch, pos, head, d_in]`` times the weight ``name``, ``[batch, pos, head, d_out]``."""
        shared = self.shared
        precision, high = shared.precision, shared.high
        key, master = f"blocks.{self.layer}.attn.{name}", getattr(self.module, name)
        number_format = precision.format_of(part, self.layer)
        is_low = number_format.is_low and not high.everything
        low = shared.low_copy(key, master, number_format) if is_low else None
        heads = high.heads_of(self.layer)
        return project_heads(
            x,
            master,
            low,
            heads,
            precision.activation_format(number_format),
            precision.scale,
            precision.kernel,
            lambda: shared.masters.get(key, master, tuple(heads) if is_low else None),
            shared.streams,
        )

    def _rounded(self, x: Tensor, part: str, head_axis: int) -> Tensor:
        """An operand of scores or values, ``[..., summed over]``."""
        precision, high = self.shared.precision, self.shared.high
        number_format = precision.format_of(part, self.layer)
        if not number_format.is_low or high.everything:
            return x
        return rounded(x, number_format, precision.scale, head_axis, high.heads_of(self.layer))

    def _alibi(self, scores: Tensor) -> Tensor:
        attn: Any = self.module
        queries, keys = scores.shape[-2:]
        if attn.alibi is None or keys > attn.alibi.size(-1):
            attn.alibi = attn.create_alibi_bias(attn.cfg.n_heads, keys, scores.device)
        return attn.alibi[:, -queries:, :keys].to(high_dtype(scores.dtype))
