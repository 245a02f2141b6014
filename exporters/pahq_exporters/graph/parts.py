"""Parts of a transformer's forward as nodes: embedding, norms, attention, MLPs, unembedding.

Both kinds of graph are built from these. Numbers, masks, rotary tables and activation functions are read
from the model's modules, so that edited ones are exported as they are. `check_exportable` refuses models
with unsupported parts before anything is built.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any

import torch

from pahq_exporters.description import Description
from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.rounding import Rounding
from pahq_plugin.errors import ExportError
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.changes import Change, activation_name, changes, odd_attention
from pahq_plugin.models.supported import GRAPH
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import NumberFormat
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
    if not cfg.attn_only:
        if type(block.mlp).__name__ not in GRAPH.mlps:
            raise ExportError(f"no graph for blocks.{layer}.mlp, a {type(block.mlp).__name__}")
        if activation_name(getattr(block.mlp, "act_fn", None)) not in GRAPH.activations:
            raise ExportError(
                f"no graph for the activation function of blocks.{layer}.mlp; known: "
                f"{', '.join(GRAPH.activations)}"
            )
    if type(block.attn).__name__ not in GRAPH.attention:
        raise ExportError(f"no graph for blocks.{layer}.attn, a {type(block.attn).__name__}")
    if getattr(block.attn, "q_norm", None) is not None or getattr(cfg, "use_qk_norm", False):
        raise ExportError(f"no graph for blocks.{layer}.attn with norms of queries and keys")


class Parts:
    """Base of both kinds of graph: adds parts of one model to a graph.

    Args:
        build: the graph.
        model: the exported model.
        described: what to build.
        precision: formats of the parts.
    """

    def __init__(
        self, build: Builder, model: PatchableModel, described: Description, precision: PrecisionConfig
    ) -> None:
        self.build, self.cfg, self.described, self.precision = build, model.cfg, described, precision
        self.inner: Any = model.wrapped_model
        self.rounding = Rounding(build, precision)
        self.first_input = "residual" if described.start_layer else "tokens"
        self._length = build.dimension(self.first_input, 1)
        self._biases: dict[str, str] = {}
        self._rotations: dict[str, tuple[str, str]] = {}

    def module(self, name: str) -> Any:
        """Return a module or parameter of the model, such as ``"blocks.0.attn.W_Q"``."""
        return attrgetter(name)(self.inner)

    def parameter(self, name: str) -> str:
        """Store a parameter of the model in FP32."""
        return self.build.tensor(name, self.module(name).float())

    def weight(self, name: str, used: NumberFormat) -> str:
        """Store a weight of the model in the format ``used``; returns the FP32 value to compute with."""
        return self.rounding.weight(name, self.module(name), used)

    def start(self) -> str:
        """Return the residual stream before the first block, ``[batch, pos, d_model]``."""
        if self.described.start_layer:
            return "residual"
        x = self.build.op("Gather", self.parameter("embed.W_E"), "tokens")
        if self.cfg.post_embedding_ln:
            x = self.norm("embed.ln", x)
        if self.cfg.positional_embedding_type != "standard":
            return x
        return self.build.op("Add", x, self._first_rows(self.parameter("pos_embed.W_pos")))

    def _first_rows(self, table: str) -> str:
        """Cut the first axis to the number of positions."""
        build = self.build
        return build.op("Slice", table, build.integers(0), self._length, build.integers(0))

    def norm(self, name: str, x: str) -> str:
        """Apply the norm of that name over the last axis."""
        build, module = self.build, self.module(name)
        kind = type(module).__name__
        if kind == "Identity":
            return x
        if kind == "LayerNorm":
            weights = self.parameter(f"{name}.w"), self.parameter(f"{name}.b")
            return build.op("LayerNormalization", x, *weights, epsilon=module.eps)
        if kind == "LayerNormPre":
            width = self.cfg.d_mlp if name.endswith("mlp.ln") else self.cfg.d_model
            ones = build.tensor(f"ones_{width}", torch.ones(width))
            return build.op("LayerNormalization", x, ones, epsilon=module.eps)
        square = build.op("Mul", x, x)
        mean = build.op("ReduceMean", square, build.integers(-1), keepdims=1)
        size = build.op("Sqrt", build.op("Add", mean, build.constant(module.eps)))
        x = build.op("Div", x, size)
        return x if kind == "RMSNormPre" else build.op("Mul", x, self.parameter(f"{name}.w"))

    def logits(self, x: str) -> str:
        """Map the patched input of the output, ``[..., batch, pos, d_model]`` with 4 axes, to logits
        ``[..., batch, (pos,) d_vocab_out]`` at the graph's positions."""
        build = self.build
        if self.described.positions == "last":
            x = build.op("Gather", x, build.scalar(-1), axis=2)
        elif self.described.positions == "not_first":
            x = build.slice(x, 2, 1, 2**62)
        if self.cfg.normalization_type is not None:
            x = self.norm("ln_final", x)
        used = self.precision.format_of("unembed")
        weight = self.weight("unembed.W_U", used)
        logits = build.op("MatMul", self.rounding.activation(x, used), weight)
        logits = build.op("Add", logits, self.parameter("unembed.b_U"))
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
        q, k = self.rotate(attn, q), self.rotate(attn, k)
        q = build.op("Div", q, build.constant(float(attn.attn_scale)))
        scores = build.op("MatMul", q, build.swap_last(k, rank))
        scores = self.soft_cap(scores, self.cfg.attn_scores_soft_cap)
        if self.cfg.positional_embedding_type == "alibi":
            scores = build.op("Add", scores, self._alibi(rank, head))
        bias = self.mask(attn)
        if bias is not None:
            scores = build.op("Add", scores, bias)
        return build.op("MatMul", build.op("Softmax", scores, axis=-1), v)

    def _distances(self) -> str:
        """Return key position minus query position, integers ``[query_pos, key_pos]``."""
        build = self.build
        count = build.op("Squeeze", self._length)
        at = build.op("Range", build.scalar(0), count, build.scalar(1))
        return build.op("Sub", build.unsqueeze(at, 0), build.unsqueeze(at, 1))

    def prepare(self) -> None:
        """Add the nodes that blocks share; call it before any branch."""
        if self.cfg.positional_embedding_type == "alibi":
            self._distance = self.build.op("Cast", self._distances(), to=1)
        for block in self.inner.blocks:
            self.mask(block.attn)
            if self.cfg.positional_embedding_type == "rotary":
                self._rotation(block.attn)

    def mask(self, attn: Any) -> str | None:
        """Return the additive attention mask, 0 or minus infinity, ``[query_pos, key_pos]``; ``None`` if
        every query sees every key."""
        if self.cfg.attention_dir != "causal":
            return None
        usual = torch.ones_like(attn.mask).tril()
        if attn.attn_type == "local":
            usual = usual.triu(1 - self.cfg.window_size)
        edited = not torch.equal(attn.mask, usual)
        key = f"mask.{fingerprint(attn.mask):x}" if edited else attn.attn_type
        if key not in self._biases:
            made = self._stored_mask(key, attn.mask) if edited else self._computed_mask(attn.attn_type)
            self._biases[key] = made
        return self._biases[key]

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
        build, attn = self.build, self.inner.blocks[0].attn
        distance = build.op("Min", self._distance, build.constant(0.0))
        slopes = build.tensor("alibi", attn.create_alibi_multipliers(self.cfg.n_heads).float())
        if head is not None:
            return build.op("Mul", build.op("Gather", slopes, head), distance)
        return build.op("Mul", build.reshape(slopes, -1, *[1] * (rank - 1)), distance)

    def rotate(self, attn: Any, x: str) -> str:
        """Apply the rotary embedding to queries or keys ``[..., pos, d_head]``."""
        if self.cfg.positional_embedding_type != "rotary":
            return x
        build, width, d_head = self.build, self.cfg.rotary_dim, self.cfg.d_head
        sin, cos = self._rotation(attn)
        turned = x if width == d_head else build.slice(x, -1, 0, width)
        # `rotate_every_two` as a signed permutation matrix
        flip = attn.rotate_every_two(torch.eye(width, device=attn.rotary_sin.device)).float()
        flipped = build.op("MatMul", turned, build.tensor("rotary.flip", flip))
        mixed = build.op("Add", build.op("Mul", turned, cos), build.op("Mul", flipped, sin))
        if width == d_head:
            return mixed
        return build.op("Concat", mixed, build.slice(x, -1, width, d_head), axis=-1)

    def _rotation(self, attn: Any) -> tuple[str, str]:
        """Return sines and cosines, ``[pos, rotary_dim]`` each; layers with equal tables share them."""
        key = f"{fingerprint(attn.rotary_sin)} {fingerprint(attn.rotary_cos)}"
        if key not in self._rotations:
            build, i = self.build, len(self._rotations)
            sin = self._first_rows(build.tensor(f"rotary.sin.{i}", attn.rotary_sin.float()))
            cos = self._first_rows(build.tensor(f"rotary.cos.{i}", attn.rotary_cos.float()))
            self._rotations[key] = sin, cos
        return self._rotations[key]

    def mlp(self, layer: int, x: str) -> str:
        """Apply an MLP, with the norm before it, to its inputs ``[..., d_model]``."""
        build, mlp, name = self.build, self.inner.blocks[layer].mlp, f"blocks.{layer}.mlp"
        used = self.precision.format_of("mlp", layer)
        x = self.rounding.activation(self.norm(f"blocks.{layer}.ln2", x), used)
        made = {
            part: build.op("MatMul", x, self.weight(f"{name}.{part}", used))
            for part in first_weights(mlp)
        }
        b_in = self.parameter(f"{name}.b_in")
        gated = "W_gate" in made
        pre = made["W_gate"] if gated else build.op("Add", made["W_in"], b_in)
        post = self._activation(mlp.act_fn, pre)
        if self.cfg.is_layer_norm_activation():
            post = self.norm(f"{name}.ln", post)
        elif gated:
            post = build.op("Add", build.op("Mul", post, made["W_in"]), b_in)
        post = self.rounding.activation(post, used)
        out = build.op("MatMul", post, self.weight(f"{name}.W_out", used))
        return build.op("Add", out, self.parameter(f"{name}.b_out"))

    def _activation(self, function: object, x: str) -> str:
        build, kind = self.build, activation_name(function)
        if kind == "relu":
            return build.op("Relu", x)
        if kind == "silu":
            return build.op("Mul", x, build.op("Sigmoid", x))
        if kind == "solu":
            return build.op("Mul", x, build.op("Softmax", x, axis=-1))
        return build.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")
