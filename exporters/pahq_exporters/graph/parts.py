"""Parts of a transformer's forward as nodes: embedding, norms, attention, MLPs, unembedding.

Both kinds of graph are built from these. Numbers, masks, rotary tables and activation functions are read
from the model's modules, so that edited ones are exported as they are. `check_exportable` refuses models
with unsupported parts before anything is built.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.rounding import Rounding
from pahq_plugin.errors import ExportError
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.changes import Change, activation_name, changes, odd_attention
from pahq_plugin.models.supported import GRAPH
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.modules import first_weights
from pahq_plugin.system.fingerprint import fingerprint

EXPORTED = {"attn_scale", "eps", "layer_id", "mask", "rotary_sin", "rotary_cos"}
"""Numbers and buffers of modules that are exported as they are."""


def check_exportable(model: PatchableModel) -> None:
    """Refuse a model with a part that a graph cannot represent.

    Raises:
        ExportError: the message names the part.
    """
    if not model.is_transformer or not hasattr(model.wrapped_model, "blocks"):
        raise ExportError("the model is not a transformer; only transformers can be exported")
    cfg = model.cfg
    kind = cfg.positional_embedding_type
    if kind not in GRAPH.positions:
        raise ExportError(f"no graph for {kind!r} positions; known: {', '.join(GRAPH.positions)}")
    if model.kv_caches is not None:
        raise ExportError("the model carries a KV cache of a common prefix; export it without one")
    if any(parameter.dtype is torch.float64 for parameter in model.wrapped_model.parameters()):
        raise ExportError(
            "weights are in float64, but graphs compute in FP32; call "
            "model.wrapped_model.to(torch.float32) first"
        )
    if cfg.use_normalization_before_and_after and not GRAPH.norms_after_attention:
        raise ExportError(
            "no graph for norms after attention (use_normalization_before_and_after is on)"
        )
    for layer, block in enumerate(model.blocks):
        _check_block(layer, block, cfg)
    lost = (change for change in changes(model) if not _is_exported(change))
    odd = next(map(str, lost), None) or odd_attention(model, cfg.n_ctx)
    if odd is not None:
        raise ExportError(f"{odd} would not be in the graph; undo that first")


def _is_exported(change: Change) -> bool:
    """Return whether the export includes the change."""
    if change.kind == "function":
        return activation_name(change.value) in GRAPH.activations
    return change.kind in ("number", "buffer") and change.name in EXPORTED


def _check_block(layer: int, block: Any, cfg: Any) -> None:
    if type(block.ln1).__name__ not in GRAPH.norms:
        raise ExportError(f"no graph for blocks.{layer}.ln1, a {type(block.ln1).__name__}")
    if not cfg.attn_only and type(block.mlp).__name__ not in GRAPH.mlps:
        raise ExportError(f"no graph for blocks.{layer}.mlp, a {type(block.mlp).__name__}")
    if (
        not cfg.attn_only
        and activation_name(getattr(block.mlp, "act_fn", None)) not in GRAPH.activations
    ):
        raise ExportError(
            f"no graph for the activation function of blocks.{layer}.mlp; known: "
            f"{', '.join(GRAPH.activations)}"
        )
    if type(block.attn).__name__ not in GRAPH.attention:
        raise ExportError(f"no graph for blocks.{layer}.attn, a {type(block.attn).__name__}")
    if getattr(block.attn, "q_norm", None) is not None or getattr(cfg, "use_qk_norm", False):
        raise ExportError(f"no graph for blocks.{layer}.attn with norms of queries and keys")


class Parts:
    """Parts of one model in one graph.

    Args:
        build: the graph.
        model: the exported model.
        precision: formats of the parts.
        length: value that holds the number of positions, ``[1]``.
    """

    def __init__(
        self, build: Builder, model: PatchableModel, precision: PrecisionConfig, length: str
    ) -> None:
        self.build = build
        self.cfg = model.cfg
        self.inner: Any = model.wrapped_model
        self.precision = precision
        self.rounding = Rounding(build, precision)
        self._length = length
        self._biases: dict[str, str] = {}
        self._rotations: dict[str, tuple[str, str]] = {}

    def embed(self, tokens: str) -> str:
        """Embed token ids ``[batch, pos]``; returns the residual stream ``[batch, pos, d_model]``."""
        build, inner = self.build, self.inner
        x = build.op("Gather", build.tensor("embed.W_E", inner.embed.W_E.float()), tokens)
        if self.cfg.post_embedding_ln:
            x = self.norm(inner.embed.ln, "embed.ln", x)
        if self.cfg.positional_embedding_type != "standard":
            return x
        table = build.tensor("pos_embed.W_pos", inner.pos_embed.W_pos.float())
        return build.op("Add", x, self._first_rows(table))

    def _first_rows(self, table: str, axis: int = 0) -> str:
        """Cut an axis to the number of positions."""
        build = self.build
        return build.op("Slice", table, build.integers(0), self._length, build.integers(axis))

    def norm(self, module: Any, name: str, x: str) -> str:
        """Apply a TransformerLens norm over the last axis."""
        build, kind = self.build, type(module).__name__
        if kind == "Identity":
            return x
        if kind.startswith("LayerNorm"):
            if kind == "LayerNorm":
                w, b = build.tensor(f"{name}.w", module.w.float()), module.b.float()
                return build.op(
                    "LayerNormalization", x, w, build.tensor(f"{name}.b", b), epsilon=module.eps
                )
            width = self.cfg.d_mlp if name.endswith("mlp.ln") else self.cfg.d_model
            ones = build.tensor(f"ones_{width}", torch.ones(width))
            return build.op("LayerNormalization", x, ones, epsilon=module.eps)
        square = build.op("Mul", x, x)
        mean = build.op("ReduceMean", square, build.integers(-1), keepdims=1)
        size = build.op("Sqrt", build.op("Add", mean, build.constant(module.eps)))
        x = build.op("Div", x, size)
        return x if kind == "RMSNormPre" else build.op(
            "Mul", x, build.tensor(f"{name}.w", module.w.float())
        )  # fmt: skip

    def final_norm(self, x: str) -> str:
        """Apply the norm before the unembedding."""
        if self.cfg.normalization_type is None:
            return x
        return self.norm(self.inner.ln_final, "ln_final", x)

    def unembed(self, x: str) -> str:
        """Map normalised residual streams ``[..., d_model]`` to logits ``[..., d_vocab_out]``."""
        build, module = self.build, self.inner.unembed
        used = self.precision.format_of("unembed")
        weight = self.rounding.weight("unembed.W_U", module.W_U, used)
        x = self.rounding.activation(x, used, None)
        logits = build.op("MatMul", x, weight)
        logits = build.op("Add", logits, build.tensor("unembed.b_U", module.b_U.float()))
        return self.soft_cap(logits, self.cfg.output_logits_soft_cap)

    def soft_cap(self, x: str, cap: float) -> str:
        """Return ``cap tanh(x / cap)``; ``x`` for a cap of 0 or less."""
        if cap <= 0:
            return x
        build = self.build
        inside = build.op("Tanh", build.op("Div", x, build.constant(cap)))
        return build.op("Mul", inside, build.constant(cap))

    def attend(self, layer: int, q: str, k: str, v: str, rank: int, head: str | None = None) -> str:
        """Return attended values, in the shape of ``q``.

        Args:
            layer: the block.
            q, k, v: with biases, ``[head, ..., pos, d_head]``.
            rank: their number of axes.
            head: index ``[1]`` of a head, if the tensors are of that head alone, without a head axis.
        """
        build, attn = self.build, self.inner.blocks[layer].attn
        q, k = self.rotate(layer, q), self.rotate(layer, k)
        q = build.op("Div", q, build.constant(float(attn.attn_scale)))
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        scores = build.op("MatMul", q, build.op("Transpose", k, perm=swapped))
        scores = self.soft_cap(scores, self.cfg.attn_scores_soft_cap)
        if self.cfg.positional_embedding_type == "alibi":
            scores = build.op("Add", scores, self._alibi(rank, head))
        bias = self.mask(layer)
        if bias is not None:
            scores = build.op("Add", scores, bias)
        return build.op("MatMul", build.op("Softmax", scores, axis=-1), v)

    def _distances(self) -> str:
        """Return key position minus query position, integers ``[query_pos, key_pos]``."""
        build = self.build
        count = build.op("Squeeze", self._length)
        at = build.op("Range", build.scalar(0), count, build.scalar(1))
        return build.op(
            "Sub",
            build.op("Unsqueeze", at, build.integers(0)),
            build.op("Unsqueeze", at, build.integers(1)),
        )

    def prepare(self) -> None:
        """Add the nodes that blocks share; call it before any branch."""
        if self.cfg.positional_embedding_type == "alibi":
            self._distance = self.build.op("Cast", self._distances(), to=1)
        for layer, block in enumerate(self.inner.blocks):
            self.mask(layer)
            if self.cfg.positional_embedding_type == "rotary":
                self._rotation(block.attn)

    def mask(self, layer: int) -> str | None:
        """Return the additive attention mask, 0 or minus infinity, ``[query_pos, key_pos]``; ``None`` if
        every query sees every key."""
        if self.cfg.attention_dir != "causal":
            return None
        attn = self.inner.blocks[layer].attn
        edited = not torch.equal(attn.mask, self._usual_mask(attn))
        key = f"mask.{fingerprint(attn.mask):x}" if edited else attn.attn_type
        if key not in self._biases:
            made = self._stored_mask(key, attn.mask) if edited else self._computed_mask(attn.attn_type)
            self._biases[key] = made
        return self._biases[key]

    def _usual_mask(self, attn: Any) -> torch.Tensor:
        """Return the unedited mask of a module, bool ``[query_pos, key_pos]``."""
        causal = torch.ones_like(attn.mask).tril()
        return causal.triu(1 - self.cfg.window_size) if attn.attn_type == "local" else causal

    def _stored_mask(self, name: str, mask: torch.Tensor) -> str:
        """Return the end of a stored mask, the part that TransformerLens reads."""
        build, seen = self.build, self.build.tensor(name, mask)
        for axis in (0, 1):
            last = build.op("Neg", self._length)
            seen = build.op("Slice", seen, last, build.integers(2**31), build.integers(axis))
        return build.op("Where", seen, build.constant(0.0), build.constant(-math.inf))

    def _computed_mask(self, kind: str) -> str:
        build, distance = self.build, self._distances()
        hidden = build.op("Greater", distance, build.scalar(0))
        if kind == "local":
            far = build.op("LessOrEqual", distance, build.scalar(-self.cfg.window_size))
            hidden = build.op("Or", hidden, far)
        return build.op("Where", hidden, build.constant(-math.inf), build.constant(0.0))

    def _alibi(self, rank: int, head: str | None) -> str:
        build = self.build
        distance = build.op("Min", self._distance, build.constant(0.0))
        slopes = build.tensor("alibi", alibi_slopes(self.inner.blocks[0].attn, self.cfg.n_heads))
        if head is not None:
            return build.op("Mul", build.op("Gather", slopes, head), distance)
        return build.op("Mul", build.reshape(slopes, -1, *[1] * (rank - 1)), distance)

    def rotate(self, layer: int, x: str) -> str:
        """Apply the rotary embedding to queries or keys ``[..., pos, d_head]``."""
        if self.cfg.positional_embedding_type != "rotary":
            return x
        build, attn, width = self.build, self.inner.blocks[layer].attn, self.cfg.rotary_dim
        sin, cos = self._rotation(attn)
        turned = x if width == self.cfg.d_head else build.slice(x, -1, 0, width)
        flipped = build.op("MatMul", turned, build.tensor("rotary.flip", _flip(attn, width)))
        mixed = build.op("Add", build.op("Mul", turned, cos), build.op("Mul", flipped, sin))
        if width == self.cfg.d_head:
            return mixed
        return build.op("Concat", mixed, build.slice(x, -1, width, self.cfg.d_head), axis=-1)

    def _rotation(self, attn: Any) -> tuple[str, str]:
        """Return sines and cosines, ``[pos, rotary_dim]`` each; layers with equal tables share them."""
        key = f"{fingerprint(attn.rotary_sin)} {fingerprint(attn.rotary_cos)}"
        if key not in self._rotations:
            i = len(self._rotations)
            tables = {f"rotary.sin.{i}": attn.rotary_sin, f"rotary.cos.{i}": attn.rotary_cos}
            sin, cos = (
                self._first_rows(self.build.tensor(name, table.float()))
                for name, table in tables.items()
            )
            self._rotations[key] = sin, cos
        return self._rotations[key]

    def mlp(self, layer: int, x: str) -> str:
        """Apply an MLP to normalised inputs ``[..., d_model]``."""
        build, mlp, name = self.build, self.inner.blocks[layer].mlp, f"blocks.{layer}.mlp"
        used = self.precision.format_of("mlp", layer)
        x = self.rounding.activation(x, used, None)
        made = {
            part: build.op("MatMul", x, self.rounding.weight(f"{name}.{part}", getattr(mlp, part), used))
            for part in first_weights(mlp)
        }
        b_in = build.tensor(f"{name}.b_in", mlp.b_in.float())
        gated = "W_gate" in made
        pre = made["W_gate"] if gated else build.op("Add", made["W_in"], b_in)
        post = self._activation(mlp.act_fn, pre)
        if self.cfg.is_layer_norm_activation():
            post = self.norm(mlp.ln, f"{name}.ln", post)
        elif gated:
            post = build.op("Add", build.op("Mul", post, made["W_in"]), b_in)
        post = self.rounding.activation(post, used, None)
        out = build.op("MatMul", post, self.rounding.weight(f"{name}.W_out", mlp.W_out, used))
        return build.op("Add", out, build.tensor(f"{name}.b_out", mlp.b_out.float()))

    def _activation(self, function: object, x: str) -> str:
        build, kind = self.build, activation_name(function)
        if kind == "relu":
            return build.op("Relu", x)
        if kind == "silu":
            return build.op("Mul", x, build.op("Sigmoid", x))
        if kind == "solu":
            return build.op("Mul", x, build.op("Softmax", x, axis=-1))
        return build.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")


def alibi_slopes(attn: Any, n_heads: int) -> torch.Tensor:
    """Return the ALiBi slope of each head, ``[head]``."""
    return attn.create_alibi_multipliers(n_heads).float()


def _flip(attn: Any, width: int) -> torch.Tensor:
    """Return `rotate_every_two` as a signed permutation matrix, ``[rotary_dim, rotary_dim]``."""
    return attn.rotate_every_two(torch.eye(width, device=attn.rotary_sin.device)).float().cpu()
