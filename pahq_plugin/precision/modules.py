"""Mixed-precision forwards of attention, MLPs and the unembedding.

In attention each head has its own precision:

1. Q, K and V of each head come from its own split input, low or high (`pahq_plugin.precision.linear`).
2. Rotation, scores, mask, softmax and value mix are those of the model's own methods, accumulated in
   high precision; the operands of scores and value mix are rounded if the configuration says so.
3. The output projection of each head is low or high.

Every TransformerLens hook point is called as in the model's own forward, so that the host's wrappers
patch, record and differentiate as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from pahq_plugin.errors import ModelError
from pahq_plugin.models.supported import LOW_PRECISION
from pahq_plugin.precision.formats import NumberFormat, high_dtype
from pahq_plugin.precision.linear import high_product, low_product, project_heads, rounded
from pahq_plugin.precision.shared import WEIGHT, Investigation


@dataclass
class MixedAttention:
    """Stands in for the ``forward`` of a block's attention, whose weights remain the masters."""

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
        """Compute the attention output, ``[batch, pos, d_model]``.

        Args:
            query_input: ``[batch, pos, head, d_model]``, like ``key_input`` and ``value_input``.
            past_kv_cache_entry: keys and values of a common prefix, or ``None``.
            additive_attention_mask: added to the scores, ``[batch, 1, 1, key_pos]``.
            attention_mask: 1 for tokens, 0 for padding, ``[batch, offset_pos]``.
            position_bias: unused; TransformerLens passes it only to encoder-decoder models.
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
        """Multiply ``x [batch, pos, head, d_in]`` by weight ``name``, ``[batch, pos, head, d_out]``."""
        shared, precision = self.shared, self.shared.precision
        key, master = f"blocks.{self.layer}.attn.{name}", getattr(self.module, name)
        number_format = precision.format_of(part, self.layer)
        is_low = number_format.is_low and not shared.high.everything
        low = shared.low_copy(key, master, number_format) if is_low else None
        heads = shared.high.heads_of(self.layer)
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
        """Round an operand of scores or values if configured; products sum over its last axis."""
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


def check_mlp(module: nn.Module, layer: int) -> None:
    """Refuse an MLP of a kind without a mixed-precision forward, with a `ModelError`."""
    if type(module).__name__ not in LOW_PRECISION.mlps:
        raise ModelError(
            f"blocks.{layer}.mlp is a {type(module).__name__}; mixed precision supports "
            f'{" and ".join(LOW_PRECISION.mlps)}; pass PrecisionConfig(mlp="fp32") to leave it as it is'
        )


def first_weights(mlp: Any) -> list[str]:
    """Return the names of the weights that a TransformerLens MLP multiplies its input by."""
    return [name for name in ("W_in", "W_gate") if hasattr(mlp, name)]


def activate(mlp: Any, entries: dict[str, Tensor]) -> Tensor:
    """Compute the input of the MLP's last weight, ``[..., d_mlp]``.

    Args:
        mlp: a TransformerLens MLP, plain or gated.
        entries: the input times ``"W_in"`` and, if gated, times ``"W_gate"``, without bias.
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
    """Stands in for the ``forward`` of a block's MLP, whose weights remain the masters."""

    module: nn.Module
    layer: int
    shared: Investigation

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the MLP output; ``x`` and the result are ``[batch, pos, d_model]``."""
        mlp: Any = self.module
        post = activate(mlp, {name: self._project(name, x) for name in first_weights(mlp)})
        return (self._project("W_out", post) + mlp.b_out).to(mlp.cfg.dtype)

    def _project(self, name: str, x: Tensor) -> Tensor:
        key, master = f"blocks.{self.layer}.mlp.{name}", getattr(self.module, name)
        number_format = self.shared.precision.format_of("mlp", self.layer)
        is_high = self.layer in self.shared.high.mlps
        return _product(self.shared, x, key, master, number_format, is_high)


@dataclass
class MixedUnembedding:
    """Stands in for the ``forward`` of the unembedding, whose weight remains the master."""

    module: nn.Module
    shared: Investigation

    def __call__(self, residual: Tensor) -> Tensor:
        """Compute logits ``[..., d_vocab]`` from ``residual [..., d_model]``."""
        module: Any = self.module
        number_format = self.shared.precision.format_of("unembed")
        is_high = self.shared.high.unembed
        logits = _product(self.shared, residual, WEIGHT, module.W_U, number_format, is_high)
        return (logits + module.b_U).to(module.cfg.dtype)


def _product(
    shared: Investigation,
    x: Tensor,
    key: str,
    master: Tensor,
    number_format: NumberFormat,
    is_high: bool,
) -> Tensor:
    """Multiply ``x [..., d_in]`` by a weight outside attention, in high or low precision."""
    precision = shared.precision
    if is_high or shared.high.everything or not number_format.is_low:
        return high_product(x, shared.masters.get(key, master))
    low = shared.low_copy(key, master, number_format)
    used = precision.activation_format(number_format)
    return low_product(x, master, low, used, precision.scale, demand=precision.kernel)
