"""The weight products of a pass over rows: in the model's own precision, or screened in few bits.

The rows of a pass differ little from the present state, which is known in full precision. Two ways
to screen them:

- ``"changes"``: only what differs from the present state goes through few bits,
  ``y = y_now + low(x - x_now) low(W)``. Scales follow the size of the change, so rounding errors are
  proportional to it, and a row without change has none.
- ``"values"``: whole activations go through few bits, as in the patching backend and in the paper.
  Rounding of two nearly equal rows does not cancel where it tips to the other side.

The output projection is applied to changes of z in either way, since that is what rows carry. Operands
of attention scores and values, and of the unembedding, are whole values in either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, Protocol

from torch import Tensor

from pahq_plugin.engines.incremental.narrow_mlp import NarrowMlp
from pahq_plugin.engines.placement.place import Placement
from pahq_plugin.host import Edge, PatchableModel
from pahq_plugin.models.blocks import Rounding, Unembedding
from pahq_plugin.models.checks import model_device
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import NumberFormat, Quantised
from pahq_plugin.precision.linear import low_product, rounded
from pahq_plugin.precision.modules import MixedMLP, activate, check_mlp, first_weights
from pahq_plugin.precision.policy import high_parts
from pahq_plugin.precision.shared import WEIGHT, Investigation, investigation, is_high

RowFunction = Callable[[Tensor], Tensor]
"""From inputs of some rows, which it may overwrite, to how their outputs differ from the present one,
``[candidate, n, d_model]`` both."""


class Products(Protocol):
    """What a pass needs of the model's weights."""

    def project(
        self, layer: int, name: str, heads: Sequence[int], x: Tensor, x_now: Tensor, y_now: Tensor
    ) -> Tensor:
        """Queries, keys or values without their bias.

        Args:
            layer: the block.
            name: ``"W_Q"``, ``"W_K"`` or ``"W_V"``.
            heads: which heads.
            x: normalised inputs of the rows, ``[head, candidate, n, d_model]``.
            x_now: those of the present state, ``[head, 1, n, d_model]``.
            y_now: the present state's result, ``[head, 1, n, d_head]``.

        Returns:
            ``[head, candidate, n, d_head]``.
        """
        ...

    def output(self, layer: int, heads: Sequence[int], change: Tensor) -> Tensor:
        """Sum over heads of the change of z ``[head, n, d_head]`` times W_O, ``[n, d_model]``."""
        ...

    def hidden(self, layer: int, x_now: Tensor) -> dict[str, Tensor]:
        """What the first weights of an MLP make of ``x_now [1, n, d_model]``, without bias, by weight
        ``[1, n, d_mlp]``."""
        ...

    def mlp(
        self, layer: int, x_now: Tensor, y_now: Tensor, hidden: Callable[[], dict[str, Tensor]]
    ) -> RowFunction:
        """The MLP as a function of normalised inputs ``[candidate, n, d_model]``; ``x_now`` and
        ``y_now`` are input and output of the present state, ``[1, n, d_model]``, and ``hidden`` gives
        what `hidden` makes of that, if it is needed."""
        ...

    def rounding(self, layer: int, heads: Sequence[int]) -> Rounding | None:
        """What becomes of the operands of scores and values of some heads; ``None`` for nothing."""
        ...

    def unembedding(self) -> Unembedding | None:
        """The unembedding; ``None`` for the model's own."""
        ...


class OwnProducts:
    """Products in the model's own precision.

    Args:
        model: a borrowed model.
        placement: where its weights are.
        memo_bytes: what `narrow_mlp` may remember.

    Attributes:
        blocks: where the weights of a block are asked for.
        narrow_mlp: the same for MLPs whose input changes in few directions.
    """

    def __init__(self, model: PatchableModel, placement: Placement, memo_bytes: int) -> None:
        self.blocks = placement.blocks
        self.narrow_mlp = NarrowMlp(self.blocks, model.cfg.d_model, memo_bytes)

    def heads(self, layer: int, name: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """Each head's ``x [head, n, d_in]`` times its weight ``name``, ``[head, n, d_out]``."""
        return x @ self.weight(layer, name, heads)

    def weight(self, layer: int, name: str, heads: Sequence[int]) -> Tensor:
        """Weights of some heads, ``[head, d_in, d_out]``; a view where they follow each other."""
        return some_heads(getattr(self.blocks[layer].attn, name), heads)

    def project(
        self, layer: int, name: str, heads: Sequence[int], x: Tensor, x_now: Tensor, y_now: Tensor
    ) -> Tensor:
        """See `Products.project`."""
        return self.heads(layer, name, heads, x.flatten(1, 2)).unflatten(1, x.shape[1:3])

    def output(self, layer: int, heads: Sequence[int], change: Tensor) -> Tensor:
        """See `Products.output`; one product over the heads side by side."""
        weight = self.weight(layer, "W_O", heads)
        if len(heads) == 1:
            return change[0] @ weight[0]
        return change.transpose(0, 1).flatten(1) @ weight.flatten(0, 1)

    def hidden(self, layer: int, x_now: Tensor) -> dict[str, Tensor]:
        """See `Products.hidden`."""
        mlp: Any = self.blocks[layer].mlp
        return {name: x_now @ getattr(mlp, name) for name in first_weights(mlp)}

    def mlp(
        self, layer: int, x_now: Tensor, y_now: Tensor, hidden: Callable[[], dict[str, Tensor]]
    ) -> RowFunction:
        """See `Products.mlp`."""
        return lambda x: self.blocks[layer].mlp(x).sub_(y_now)

    def rounding(self, layer: int, heads: Sequence[int]) -> None:
        """See `Products.rounding`."""

    def unembedding(self) -> None:
        """See `Products.unembedding`."""


class ScreenedProducts:
    """Products in few bits but for the high parts of ``shared``.

    Args:
        model: a borrowed model: its weights do not change as long as this lives.
        own: products of the parts that are high.
        shared: formats, low copies, and the parts that are high at present.

    Raises:
        ModelError: an MLP in few bits of a kind that has no products in few bits.
    """

    def __init__(self, model: PatchableModel, own: OwnProducts, shared: Investigation) -> None:
        for layer, block in enumerate(model.blocks):
            if not model.cfg.attn_only and shared.precision.format_of("mlp", layer).is_low:
                check_mlp(block.mlp, layer)
        self._own = own
        self._blocks = own.blocks
        self._unembed: Any = model.wrapped_model.unembed
        self._shared = shared
        self._copies: dict[str, Quantised] = {}

    @property
    def _changes(self) -> bool:
        return self._shared.precision.operands == "changes"

    def project(
        self, layer: int, name: str, heads: Sequence[int], x: Tensor, x_now: Tensor, y_now: Tensor
    ) -> Tensor:
        """See `Products.project`."""
        low_heads = self._low_heads(layer, "qkv", heads)
        if not low_heads:
            return self._own.project(layer, name, heads, x, x_now, y_now)

        def low() -> Tensor:
            operand = (x - x_now if self._changes else x).flatten(1, 2)
            out = self._low(layer, "qkv", name, heads, operand).unflatten(1, x.shape[1:3])
            return y_now + out if self._changes else out

        def own(i: int) -> Tensor:
            one = slice(i, i + 1)
            return self._own.project(layer, name, [heads[i]], x[one], x_now[one], y_now[one])[0]

        return self._side_by_side(low, own, heads, low_heads, (x, x_now, y_now))

    def output(self, layer: int, heads: Sequence[int], change: Tensor) -> Tensor:
        """See `Products.output`."""
        low_heads = self._low_heads(layer, "output", heads)
        if not low_heads:
            return self._own.output(layer, heads, change)

        def low() -> Tensor:
            return self._low(layer, "output", "W_O", heads, change)

        def own(i: int) -> Tensor:
            return self._own.output(layer, [heads[i]], change[i : i + 1])

        return self._side_by_side(low, own, heads, low_heads, (change,)).sum(dim=0)

    def _side_by_side(
        self,
        low: Callable[[], Tensor],
        own: Callable[[int], Tensor],
        heads: Sequence[int],
        low_heads: set[int],
        inputs: tuple[Tensor, ...],
    ) -> Tensor:
        """The low product of all heads, with the high ones' own products in their places."""
        high = [i for i, head in enumerate(heads) if head not in low_heads]
        if not high:
            return low()
        streams = self._shared.streams
        with streams.on("low", *inputs):
            out = low()
        with streams.on("high", *inputs):
            made = [own(i) for i in high]
        streams.join("low", out)
        streams.join("high", *made)
        for i, product in zip(high, made, strict=True):
            out[i] = product
        return out

    def hidden(self, layer: int, x_now: Tensor) -> dict[str, Tensor]:
        """See `Products.hidden`; in few bits, too."""
        names = first_weights(self._blocks[layer].mlp)
        return {name: self._low_mlp(layer, name, x_now) for name in names}

    def mlp(
        self, layer: int, x_now: Tensor, y_now: Tensor, hidden: Callable[[], dict[str, Tensor]]
    ) -> RowFunction:
        """See `Products.mlp`."""
        precision, high = self._shared.precision, self._shared.high
        is_low = precision.format_of("mlp", layer).is_low
        if high.everything or layer in high.mlps or not is_low:
            return self._own.mlp(layer, x_now, y_now, hidden)
        if not self._changes:
            return lambda x: MixedMLP(self._blocks[layer].mlp, layer, self._shared)(x).sub_(y_now)
        now, mlp = hidden(), self._blocks[layer].mlp
        post_now = activate(mlp, now)

        def rows(x: Tensor) -> Tensor:
            change = x.sub_(x_now)
            new = {name: self._low_mlp(layer, name, change).add_(now[name]) for name in now}
            return self._low_mlp(layer, "W_out", activate(mlp, new).sub_(post_now))

        return rows

    def rounding(self, layer: int, heads: Sequence[int]) -> Rounding | None:
        """See `Products.rounding`."""
        precision, high = self._shared.precision, self._shared.high
        low = [part for part in ("scores", "values") if precision.format_of(part, layer).is_low]
        if high.everything or not low:
            return None
        stay = [i for i, head in enumerate(heads) if head in high.heads_of(layer)]

        def operand(part: str, x: Tensor) -> Tensor:
            if part not in low:
                return x
            return rounded(x, precision.format_of(part, layer), precision.scale, 0, stay)

        return operand

    def unembedding(self) -> Unembedding | None:
        """See `Products.unembedding`."""
        if is_high(self._shared):
            return None
        precision = self._shared.precision
        number_format = precision.format_of("unembed")
        copy = self._copy(WEIGHT, lambda: self._unembed.W_U, number_format)
        used = precision.activation_format(number_format)

        def logits(x: Tensor, words: slice) -> Tensor:
            some = copy.columns(words)
            return low_product(x, None, some, used, precision.scale, demand=precision.kernel)

        return logits

    def _low_heads(self, layer: int, part: str, heads: Sequence[int]) -> set[int]:
        """Those of ``heads`` whose ``part`` runs in few bits."""
        precision, high = self._shared.precision, self._shared.high
        low = precision.format_of(part, layer).is_low and not high.everything
        return set(heads) - set(high.heads_of(layer)) if low else set()

    def _low(self, layer: int, part: str, name: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """``x [head, n, d_in]`` times low weights of those heads, ``[head, n, d_out]``."""
        precision = self._shared.precision
        number_format = precision.format_of(part, layer)
        whole = self._copy(
            f"blocks.{layer}.attn.{name}", lambda: getattr(self._blocks[layer].attn, name), number_format
        )
        used, copy = precision.activation_format(number_format), of_heads(whole, heads)
        return low_product(x, None, copy, used, precision.scale, 0, precision.kernel)

    def _low_mlp(self, layer: int, name: str, x: Tensor) -> Tensor:
        """``x [..., d_in]`` times a low weight of the MLP, ``[..., d_out]``."""
        precision = self._shared.precision
        number_format = precision.format_of("mlp", layer)
        copy = self._copy(
            f"blocks.{layer}.mlp.{name}", lambda: getattr(self._blocks[layer].mlp, name), number_format
        )
        used = precision.activation_format(number_format)
        return low_product(x, None, copy, used, precision.scale, demand=precision.kernel)

    def _copy(self, name: str, read: Callable[[], Tensor], number_format: NumberFormat) -> Quantised:
        """The low copy of a weight, which is read once only."""
        if name not in self._copies:
            self._copies[name] = self._shared.low_copy(name, read(), number_format)
        return self._copies[name]


def some_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Some of ``x [head, ...]``; a view where they follow each other."""
    first, last = heads[0], heads[-1]
    adjoining = list(heads) == list(range(first, last + 1))
    return x[first : last + 1] if adjoining else x[list(heads)]


def of_heads(copy: Quantised, heads: Sequence[int]) -> Quantised:
    """The low weights of some heads."""
    scale = copy.scale if copy.scale.shape[0] == 1 else some_heads(copy.scale, heads)
    if copy.packed is None:
        return Quantised(some_heads(copy.codes, heads), scale)
    packed, (d_in, d_out) = some_heads(copy.packed, heads), copy.codes.shape[-2:]
    return Quantised(packed[..., :d_in, :d_out], scale, packed)


FEW_ROWS = 8
"""A pass over fewer rows than this goes on to the next destination of the stage."""


class Screen:
    """Mixed-precision products for whatever candidates are under test."""

    def __init__(self, model: PatchableModel, own: OwnProducts, precision: PrecisionConfig) -> None:
        self._shared = investigation(precision, model_device(model))
        self._products = ScreenedProducts(model, own, self._shared)

    @property
    def few(self) -> int:
        """A pass over fewer rows than this goes on to the next destination of the stage."""
        return FEW_ROWS if self.only_changes else 1

    @property
    def only_changes(self) -> bool:
        """Whether a row without a change shows the present state, free of rounding."""
        return self._shared.precision.only_changes

    def products(self, group: Sequence[Edge]) -> Products:
        """Products in which the parts are high that the policy keeps so for ``group``."""
        parts = (high_parts(self._shared.precision.policy, edge) for edge in group)
        self._shared.high = reduce(or_, parts)
        return self._products
