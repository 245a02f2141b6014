"""The arithmetic of a transformer's blocks, unit by unit, on any number of candidates.

An engine that recomputes single heads needs the pieces of the model's forward: norms, weights,
rotation, scores, masks. They are read from the TransformerLens modules. Tensors are unit-major,
``[head, candidate, batch, pos, d]``, so that the heads of a layer multiply with their own weights in one
batched product.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens.utils import get_offset_position_ids

from pahq_plugin.host.types import PatchableModel
from pahq_plugin.models.changes import first_change, odd_attention
from pahq_plugin.models.supported import INCREMENTAL

Rounding = Callable[[Literal["scores", "values"], Tensor], Tensor]
"""Rounds an operand ``[head, ..., summed over]`` of an attention product to few bits."""

Unembedding = Callable[[Tensor, slice], Tensor]
"""Maps normalised final residual streams to logits of some tokens, without bias."""

LANES = 16
"""Keys are padded to a multiple of this: on a CPU with AVX-512 torch's softmax over 15 numbers takes ten
times as long as over 16."""


def unsupported(model: PatchableModel, length: int) -> str | None:
    """Return why ``model`` cannot be evaluated unit by unit; ``None`` if it can.

    ``length`` is the longest prompt in tokens, including a common prefix.
    """
    if not model.is_transformer or not hasattr(model.wrapped_model, "blocks"):
        return "a model that is not a transformer"
    cfg = model.cfg
    if cfg.positional_embedding_type not in INCREMENTAL.positions:
        return f"{cfg.positional_embedding_type} positions"
    if cfg.dtype not in INCREMENTAL.dtypes:
        return f"weights in {cfg.dtype}"
    if cfg.use_normalization_before_and_after and not INCREMENTAL.norms_after_attention:
        return "norms after attention"
    if cfg.n_devices > 1:
        return "a model spread over several devices"
    return first_change(model) or odd_attention(model, length)


def normalise(norm: Any, x: Tensor) -> Tensor:
    """Apply a TransformerLens norm over the last axis, with torch's fused kernel if there is one."""
    name, size = type(norm).__name__, (x.shape[-1],)
    if name in ("LayerNorm", "LayerNormPre"):
        weight, bias = getattr(norm, "w", None), getattr(norm, "b", None)
        return functional.layer_norm(x, size, weight, bias, norm.eps)
    if name in ("RMSNorm", "RMSNormPre"):
        return functional.rms_norm(x, size, getattr(norm, "w", None), norm.eps)
    return norm(x)


@dataclass(frozen=True)
class LinearNorm:
    """The parts of a norm over the last axis: ``norm(x) = (x - mean(x)) w / size(x) + b``.

    Attributes:
        w: ``[d_model]``; ``None`` for 1.
        b: ``[d_model]``; ``None`` for 0.
        eps: added under the root of ``size``; ``None`` for an identity.
        centred: whether the mean is subtracted.
    """

    w: Tensor | None
    b: Tensor | None
    eps: float | None
    centred: bool

    def direction(self, x: Tensor) -> Tensor:
        """Compute ``(x - mean(x)) w``, linear in ``x [..., d_model]``."""
        x = x - x.mean(dim=-1, keepdim=True) if self.centred else x
        return x if self.w is None else x * self.w

    fold = direction
    """`direction` of the rows of a weight ``[..., d_model]`` that writes to the residual stream."""

    def inverse_size(self, x: Tensor) -> Tensor | None:
        """Compute ``1 / size(x)``, ``[..., 1]``; ``None`` for 1."""
        if self.eps is None:
            return None
        if self.centred:
            return torch.native_layer_norm(x, [x.shape[-1]], None, None, self.eps)[2]
        return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)

    def pull_back_(self, x: Tensor, after: Tensor) -> Tensor:
        """Take gradients behind the norm, ``[..., d_model]``, to those at its input ``x``, in place.

        With y the normalised x before w and b, and h the gradient at y, that at x is
        ``(h - mean(h) - y mean(h y)) / size(x)``; without ``mean(h)`` if the norm does not centre.
        """
        if self.w is not None:
            after *= self.w
        inverse = self.inverse_size(x)
        if inverse is None:
            return after
        y = (x - x.mean(dim=-1, keepdim=True) if self.centred else x) * inverse
        after *= inverse
        along = torch.linalg.vecdot(after, y)[..., None] / x.shape[-1]
        if self.centred:
            after -= after.mean(dim=-1, keepdim=True)
        return after.addcmul_(y, along, value=-1)


def linear_norm(norm: Any) -> LinearNorm | None:
    """Take a TransformerLens norm apart; ``None`` for an unknown kind."""
    if isinstance(norm, nn.Identity):
        return LinearNorm(None, None, None, centred=False)
    name = type(norm).__name__.removesuffix("Pre")
    if name not in ("LayerNorm", "RMSNorm"):
        return None
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    return LinearNorm(weight, bias, norm.eps, centred=name == "LayerNorm")


class AttentionMath:
    """The arithmetic of one attention layer on the prompts of one batch.

    ``residual`` is any residual stream of the prompts, ``[batch, pos, d_model]``; ``padding`` is 1 for
    tokens and 0 for padding, ``[batch, offset_pos]``, or ``None``.
    """

    def __init__(
        self, model: PatchableModel, layer: int, residual: Tensor, padding: Tensor | None
    ) -> None:
        block, caches = model.blocks[layer], model.kv_caches
        self.norm = block.ln1
        self.attn = block.attn
        self._padding = padding
        self._length = residual.shape[1]
        self._past, self.prefix = 0, None
        if caches is not None:
            entry = caches[len(residual)][layer]
            self._past = entry.past_keys.shape[1]
            self.prefix = self._make_prefix(entry)
        self._spare = -(self._past + self._length) % LANES
        self.bias = self._make_bias(residual)
        self._blind: Tensor | None = None  # queries in the padding, which attend to no key
        if padding is not None and self.bias is not None:
            self._blind = self.bias[:1].isneginf().all(dim=-1, keepdim=True)

    def of_prompts(self, prompts: Tensor) -> AttentionMath:
        """Return the same arithmetic on some prompts of the batch, whose indices are ``[prompt]``."""
        some = copy(self)
        if self._padding is not None:
            some._padding = self._padding[prompts.to(self._padding.device)]
        if self.prefix is not None:
            keys, values = (past.index_select(2, prompts) for past in self.prefix)
            some.prefix = keys, values
        if self.bias is not None and self.bias.shape[2] > 1:
            some.bias = self.bias.index_select(2, prompts)
        if self._blind is not None and self._blind.shape[2] > 1:
            some._blind = self._blind.index_select(2, prompts)
        return some

    def weight_of(self, letter: str) -> Tensor:
        """Return the weight of q, k or v, ``[head, d_model, d_head]``."""
        return getattr(self.attn, f"W_{letter.upper()}")

    def bias_of(self, letter: str) -> Tensor:
        """Return the bias of q, k or v, ``[head, d_head]``."""
        return getattr(self.attn, f"b_{letter.upper()}")

    def rotate(self, x: Tensor, letter: str, positions: Tensor) -> Tensor:
        """Apply the rotary embedding to queries or keys ``[head, candidate, batch, pos, d_head]``."""
        if letter == "v" or self.attn.cfg.positional_embedding_type != "rotary":
            return x
        return self._rotate(x, positions + self._past)

    def _rotate(self, x: Tensor, at: Tensor) -> Tensor:
        """Rotate by the angles of positions ``at``, counted from the start of the prefix."""
        attn = self.attn
        if self._padding is None:
            cos, sin = attn.rotary_cos[at], attn.rotary_sin[at]  # [pos, rotary_dim]
        else:
            ids = get_offset_position_ids(0, self._padding)[:, at.cpu()].to(x.device)
            cos, sin = attn.rotary_cos[ids], attn.rotary_sin[ids]  # [batch, pos, rotary_dim]
        width = attn.cfg.rotary_dim
        turned, passed = x[..., :width], x[..., width:]
        turned = turned * cos + attn.rotate_every_two(turned) * sin
        return torch.cat([turned, passed], dim=-1)

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: list[int],
        positions: Tensor,
        rounded: Rounding | None = None,
    ) -> Tensor:
        """Compute the value mix z of each head.

        Args:
            q: ``[head, candidate or 1, batch, query_pos, d_head]``.
            k: ``[head, candidate or 1, batch, key_pos, d_head]``; ``v`` alike.
            positions: positions of the queries, ``[query_pos]``.
            rounded: rounds the operands of ``"scores"`` and ``"values"``, whose last axis is summed
                over; no rounding by default.

        Returns:
            ``[head, candidate or 1, batch, query_pos, d_head]``.
        """
        if self.prefix is not None:
            k, v = (
                torch.cat([part[heads].expand(-1, x.shape[1], -1, -1, -1), x], dim=3)
                for part, x in zip(self.prefix, (k, v), strict=True)
            )
        if self._spare:
            k, v = (functional.pad(x, (0, 0, 0, self._spare)) for x in (k, v))
        if rounded is not None:
            q, k, v = rounded("scores", q), rounded("scores", k), rounded("values", v.mT).mT
        scores = _row_product(q / self.attn.attn_scale, k.mT)
        cap = self.attn.cfg.attn_scores_soft_cap
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        if self.bias is not None:
            bias = self.bias[:, :, :, positions]
            scores = scores + (bias if len(bias) == 1 else bias[heads])
        if self._blind is None:
            pattern = torch.softmax(scores, dim=-1)
        else:  # a softmax of -inf alone has NaN gradients, which would reach every key
            blind = self._blind[:, :, :, positions]
            pattern = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)
        return _row_product(pattern if rounded is None else rounded("values", pattern), v)

    def _make_prefix(self, entry: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of a common prefix, each ``[head, 1, batch, pos, d_head]``."""
        keys, values = (
            past.permute(2, 0, 1, 3)[:, None] for past in (entry.past_keys, entry.past_values)
        )
        if self.attn.cfg.positional_embedding_type == "rotary":
            keys = self._rotate(keys, torch.arange(self._past, device=keys.device))
        return keys, values

    def _make_bias(self, residual: Tensor) -> Tensor | None:
        """Return mask plus ALiBi slopes, added to the scores: ``[head or 1, 1, batch or 1, query_pos,
        key_pos]``; ``None`` if every position attends to all others and there are no spare keys."""
        attn, keys = self.attn, self._past + self._length
        bias = residual.new_zeros((1, 1, self._length, keys))
        if attn.cfg.attention_dir == "causal":
            bias = attn.apply_causal_mask(bias, self._past, self._padding)
        elif attn.cfg.positional_embedding_type != "alibi" and not self._spare:
            return None
        bias = bias[None].transpose(1, 2)  # [1, 1, batch or 1, query_pos, key_pos]
        if attn.cfg.positional_embedding_type == "alibi":
            slopes = attn.create_alibi_bias(attn.cfg.n_heads, keys, bias.device)
            bias = bias + slopes[:, None, None, -self._length :].to(bias.dtype)
        return functional.pad(bias, (0, self._spare), value=-torch.inf)


def _row_product(x: Tensor, y: Tensor) -> Tensor:
    """Compute ``x @ y``, both ``[head, candidate or 1, batch, n, m]``; a shared ``y`` is one product."""
    if y.shape[1] > 1 or x.shape[1] == 1:
        return x @ y
    flat = x.transpose(1, 2).flatten(2, 3) @ y[:, 0]  # [head, batch, candidate * n, m]
    return flat.unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)


def embed(model: PatchableModel, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the input of block 0, ``[batch, pos, d_model]``, and the padding mask, ``[batch,
    offset_pos]`` or ``None``."""
    residual, _, _, padding = model.input_to_embed(tokens)
    return residual, padding


def unembed(
    model: PatchableModel,
    x: Tensor,
    words: slice | None = None,
    product: Unembedding | None = None,
) -> Tensor:
    """Compute logits ``[..., vocab]`` of final residual streams ``[..., d_model]``.

    ``words`` selects some tokens of the vocabulary, ``product`` replaces the model's own product.
    """
    inner: Any = model.wrapped_model
    if model.cfg.normalization_type is not None:
        x = normalise(inner.ln_final, x)
    if words is None and product is None:
        logits = inner.unembed(x.contiguous())
    else:
        words = words or slice(None)
        own = x @ inner.unembed.W_U[:, words] if product is None else product(x, words)
        logits = own + inner.unembed.b_U[words]
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0.0 else logits


def output_positions(model: PatchableModel, length: int) -> tuple[list[int], bool]:
    """Return the positions that the model's ``out_slice`` selects, and whether it drops their axis."""
    if len(model.out_slice) == 1:
        return list(range(length)), False
    chosen = list(range(length))[model.out_slice[1]]
    return (chosen, False) if isinstance(chosen, list) else ([chosen], True)
