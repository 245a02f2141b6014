"""The patching backend: gives a host model mixed-precision attention and MLPs for a while.

Inside the ``with`` block the model's attention modules and MLPs have another ``forward``; their weights,
hooks and the host's wrappers are untouched. So the host's ``patch_mode``, ``run_circuits``,
``acdc_prune_scores`` and ``mask_gradient_prune_scores`` run in mixed precision unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pahq_plugin.errors import ConfigError, GraphError, ModelError
from pahq_plugin.host import Edge, PatchableModel
from pahq_plugin.host.graph import edge_label_of
from pahq_plugin.models.changes import plain_name, replaced
from pahq_plugin.models.checks import check_patchable, check_transformer, model_device
from pahq_plugin.precision.config import PrecisionConfig, check_precision, default_precision
from pahq_plugin.precision.modules import (
    MixedAttention,
    MixedMLP,
    MixedUnembedding,
    check_mlp,
    first_weights,
)
from pahq_plugin.precision.policy import EVERYTHING, NOTHING, HighParts, check_parts, high_parts
from pahq_plugin.precision.shared import WEIGHT, Investigation, investigation

STAND_INS = (MixedAttention, MixedMLP, MixedUnembedding)

ATTENTION_WEIGHTS = (("qkv", "W_Q"), ("qkv", "W_K"), ("qkv", "W_V"), ("output", "W_O"))
"""The weights of a head, each after the part it belongs to."""


class Backend:
    """Chooses which parts of the lent model are high."""

    def __init__(self, model: PatchableModel, precision: PrecisionConfig) -> None:
        check_parts(model.cfg, precision)
        self.model = model
        self._shared = investigation(precision, model_device(model))
        self._stand_ins = _stand_ins(model, self._shared)
        self.investigate(None)

    @property
    def precision(self) -> PrecisionConfig:
        """The formats and the policy."""
        return self._shared.precision

    def use(self, precision: PrecisionConfig) -> None:
        """Change the formats of parts that were in low precision from the start."""
        check_parts(self.model.cfg, precision)
        self._shared.precision = precision

    @property
    def high(self) -> HighParts:
        """The parts that are high at present."""
        return self._shared.high

    @high.setter
    def high(self, parts: HighParts) -> None:
        self._shared.high = parts
        self._shared.masters.keep_only(weights_of(parts))

    @property
    def low_bytes(self) -> int:
        """Bytes of the low copies of weights."""
        return self._shared.weights.nbytes

    def investigate(self, target: Edge | tuple[int, int] | None) -> None:
        """Set to high precision the parts that the policy keeps high for ``target``.

        Args:
            target: the edge under test, an attention head as ``(layer, head)``, or ``None`` for
                nothing.

        Raises:
            GraphError: the model does not have this edge or head.
        """
        policy, cfg = self.precision.policy, self.model.cfg
        if target is None:
            self.high = EVERYTHING if policy == "full" else NOTHING
        elif isinstance(target, Edge):
            if target not in self.model.edges:
                raise GraphError(f"{edge_label_of(target)} is not an edge of this model")
            self.high = self.parts_for(target)
        elif _is_pair(target):
            layer, head = target
            if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
                raise GraphError(
                    f"no head {head} in layer {layer}; the model has layers 0 to {cfg.n_layers - 1} "
                    f"with heads 0 to {cfg.n_heads - 1}"
                )
            same_for_all = {"full": EVERYTHING, "uniform": NOTHING}
            self.high = same_for_all.get(policy, HighParts(heads=frozenset({target})))
        else:
            raise GraphError(f"{target!r} is neither an edge of this model nor a (layer, head) pair")

    def parts_for(self, edge: Edge) -> HighParts:
        """Return the parts that the policy keeps high for ``edge``, without setting them."""
        return high_parts(self.precision.policy, edge)

    @contextmanager
    def own_precision(self) -> Iterator[None]:
        """Run the model with its own forwards inside the ``with`` block."""
        self._give_back()
        try:
            yield
        finally:
            self._lend()

    def _lend(self) -> None:
        for module, stand_in in self._stand_ins:
            vars(module)["forward"] = stand_in
        where, on_gpu = self.precision.masters, model_device(self.model).type == "cuda"
        if self.precision.policy != "full" and (where == "host" or (where == "auto" and on_gpu)):
            self._shared.masters.move_away(list(self._low_weights()))

    def _low_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights of low parts, each after updating its low copy."""
        weights: list[tuple[str, Any, str, int | None]] = []
        for layer, block in enumerate(self.model.blocks):
            for part, name in ATTENTION_WEIGHTS:
                weights.append((f"blocks.{layer}.attn.{name}", block.attn, part, layer))
            if not self.model.cfg.attn_only:
                for name in (*first_weights(block.mlp), "W_out"):
                    weights.append((f"blocks.{layer}.mlp.{name}", block.mlp, "mlp", layer))
        weights.append((WEIGHT, self.model.wrapped_model.unembed, "unembed", None))
        for key, module, part, layer in weights:
            number_format = self.precision.format_of(part, layer)
            # With grouped queries, for example, a weight is computed on access: no parameter to move.
            parameter = module._parameters.get(key.rpartition(".")[2])
            if number_format.is_low and parameter is not None:
                self._shared.low_copy(key, parameter, number_format)
                yield key, parameter

    def _give_back(self) -> None:
        self._shared.masters.bring_back()
        for module, _ in self._stand_ins:
            vars(module).pop("forward", None)


@contextmanager
def mixed_precision(
    model: PatchableModel, precision: PrecisionConfig | None = None
) -> Iterator[Backend]:
    """Run ``model`` in mixed precision for the length of a ``with`` block.

    Q, K, V and output projections of all heads except the investigated head are in ``precision.low``,
    MLPs in ``precision.mlp``, unless ``precision.parts`` and ``precision.formats`` say otherwise.
    Outputs of products, softmax, norms, residual stream and embedding stay in the model's dtype (at
    least FP32). Gradients pass straight through the rounding.

    On leaving, also by an exception or Ctrl-C, the model is restored bit for bit. A deep copy made
    inside the block keeps its mixed-precision forwards. If `PrecisionConfig.masters` moves weights to
    host memory, weights of low parts are empty inside the block.

    Args:
        model: a factorized host model that wraps a transformer.
        precision: formats and policy; ``None`` for those of the model's device, see `default_precision`.

    Raises:
        ModelError: the model cannot be patched, or a part of it has no mixed-precision forward.
        ConfigError: ``precision`` is not a `PrecisionConfig` or names a part that the model lacks, or
            the model is already lent.
    """
    check_precision(precision)
    check_transformer(check_patchable(model), "mixed_precision")
    check_not_lent(model)
    backend = Backend(model, precision or default_precision(model_device(model)))
    lent = {module for module, _ in backend._stand_ins}
    for name, module in model.named_modules():
        change = replaced(module, plain_name(name)) if module in lent else None
        if change is not None:
            raise ModelError(f"mixed precision would pass over {change}; use method='acdc'")
    try:
        backend._lend()
        yield backend
    finally:
        backend._give_back()


def check_not_lent(model: PatchableModel) -> None:
    """Refuse a model that is lent to a `mixed_precision` block, with a `ConfigError`."""
    if any(isinstance(vars(module).get("forward"), STAND_INS) for module in model.modules()):
        raise ConfigError("the model is lent to a mixed_precision block; leave that first")


def weights_of(parts: HighParts) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield the names of the weights of high parts, with heads, or ``None`` for the whole weight."""
    for layer in {layer for layer, _ in parts.heads}:
        heads = tuple(parts.heads_of(layer))
        yield from ((f"blocks.{layer}.attn.{name}", heads) for _, name in ATTENTION_WEIGHTS)
    for layer in parts.mlps:
        yield from ((f"blocks.{layer}.mlp.{name}", None) for name in ("W_in", "W_gate", "W_out"))
    if parts.unembed:
        yield WEIGHT, None


def _is_pair(target: object) -> bool:
    return isinstance(target, tuple) and len(target) == 2 and all(type(part) is int for part in target)


def _stand_ins(model: PatchableModel, shared: Investigation) -> list[tuple[nn.Module, Any]]:
    """Pair each attention module, low MLP and low unembedding with the stand-in for its ``forward``."""
    pairs: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.blocks):
        pairs.append((block.attn, MixedAttention(block.attn, layer, shared)))
        if not model.cfg.attn_only and shared.precision.format_of("mlp", layer).is_low:
            check_mlp(block.mlp, layer)
            pairs.append((block.mlp, MixedMLP(block.mlp, layer, shared)))
    if shared.precision.format_of("unembed").is_low:
        unembed: Any = model.wrapped_model.unembed
        pairs.append((unembed, MixedUnembedding(unembed, shared)))
    return pairs
