"""The weight products of a pass: in the model's own precision, or screened in low precision.

The rows of a pass differ little from the present state, which is known in full precision. There are two
ways to screen them:

- ``"changes"``: only the difference from the present state is rounded,
  ``y = y_now + low(x - x_now) low(W)``. Scales follow the size of the change, so rounding errors are
  proportional to it, and a row without a change has none.
- ``"values"``: whole activations are rounded, as in the patching backend and in the paper. The errors
  of two nearly equal rows do not cancel where their values round to different neighbours.

Either way, the output projection is applied to changes of z, since rows carry these, and the operands
of attention scores and values and of the unembedding are whole values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
"""Maps inputs of some rows, which it may overwrite, to the changes of their outputs from the present
state, both ``[candidate, n, d_model]``."""


class Products(Protocol):
    """The weight products that a pass needs."""

    def project(
        self, layer: int, name: str, heads: Sequence[int], x: Tensor, x_now: Tensor, y_now: Tensor
    ) -> Tensor:
        """Compute queries, keys or values, without bias.

        Args:
            layer: the block.
            name: ``"W_Q"``, ``"W_K"`` or ``"W_V"``.
            heads: which heads.
            x: normalised inputs of the rows, ``[head, candidate, n, d_model]``.
            x_now: normalised inputs of the present state, ``[head, 1, n, d_model]``.
            y_now: result of the present state, ``[head, 1, n, d_head]``.

        Returns:
            ``[head, candidate, n, d_head]``.
        """
        ...

    def output(self, layer: int, heads: Sequence[int], change: Tensor) -> Tensor:
        """Multiply changes of z by W_O and sum over heads, ``[head, ..., d_head] -> [..., d_model]``."""
        ...

    def hidden(self, layer: int, x_now: Tensor) -> dict[str, Tensor]:
        """Multiply ``x_now [1, n, d_model]`` by the first weights of an MLP, without bias; by weight
        ``[1, n, d_mlp]``."""
        ...

    def mlp(
        self, layer: int, x_now: Tensor, y_now: Tensor, hidden: Callable[[], dict[str, Tensor]]
    ) -> RowFunction:
        """Return the MLP as a function of normalised inputs ``[candidate, n, d_model]``.

        ``x_now`` and ``y_now`` are input and output of the present state, ``[1, n, d_model]``.
        ``hidden`` returns `hidden` of that input, and is called only if needed.
        """
        ...

    def rounding(self, layer: int, heads: Sequence[int]) -> Rounding | None:
        """Return how to round operands of scores and values of some heads; ``None`` for not at all."""
        ...

    def unembedding(self) -> Unembedding | None:
        """Return the unembedding; ``None`` for the model's own."""
        ...


class OwnProducts:
    """Products in the model's own precision.

    Args:
        model: a borrowed model.
        placement: where its weights are.
        memo_bytes: bytes that `narrow_mlp` may memoise.

    Attributes:
        blocks: the model's blocks, through which weights are read.
        narrow_mlp: products of MLPs whose input changes in few directions.
    """

    def __init__(self, model: PatchableModel, placement: Placement, memo_bytes: int) -> None:
        self.blocks = placement.blocks
        self.narrow_mlp = NarrowMlp(self.blocks, model.cfg.d_model, memo_bytes)

    def heads(self, layer: int, name: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """Multiply each head's ``x [head, n, d_in]`` by its weight ``name``, ``[head, n, d_out]``."""
        return x @ self.weight(layer, name, heads)

    def weight(self, layer: int, name: str, heads: Sequence[int]) -> Tensor:
        """Return the weights of some heads, ``[head, d_in, d_out]``; a view if they are consecutive."""
        return some_heads(getattr(self.blocks[layer].attn, name), heads)

    def project(
        self, layer: int, name: str, heads: Sequence[int], x: Tensor, x_now: Tensor, y_now: Tensor
    ) -> Tensor:
        """See `Products.project`."""
        return self.heads(layer, name, heads, x.flatten(1, 2)).unflatten(1, x.shape[1:3])

    def output(self, layer: int, heads: Sequence[int], change: Tensor) -> Tensor:
        """See `Products.output`; one product over the concatenated heads."""
        weight = self.weight(layer, "W_O", heads)
        if len(heads) == 1:
            return change[0] @ weight[0]
        return change.movedim(0, -2).flatten(-2) @ weight.flatten(0, 1)

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
    """Products in low precision, except for the high parts of ``shared``.

    Args:
        model: a borrowed model, whose weights do not change during this object's lifetime.
        own: products of the parts that are high.
        shared: formats, low copies, and the parts that are high at present.

    Raises:
        ModelError: an MLP in low precision is of a kind that has no low-precision products.
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

        flat = change.flatten(1, -2)

        def low() -> Tensor:
            return self._low(layer, "output", "W_O", heads, flat)

        def own(i: int) -> Tensor:
            return self._own.output(layer, [heads[i]], flat[i : i + 1])

        out = self._side_by_side(low, own, heads, low_heads, (flat,)).sum(dim=0)
        return out.view(*change.shape[1:-1], -1)

    def _side_by_side(
        self,
        low: Callable[[], Tensor],
        own: Callable[[int], Tensor],
        heads: Sequence[int],
        low_heads: set[int],
        inputs: tuple[Tensor, ...],
    ) -> Tensor:
        """Compute the low product of all heads, then replace the high heads' results by their own."""
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
        """See `Products.hidden`; in low precision, too."""
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
        """Return which of ``heads`` have ``part`` in low precision."""
        precision, high = self._shared.precision, self._shared.high
        low = precision.format_of(part, layer).is_low and not high.everything
        return set(heads) - set(high.heads_of(layer)) if low else set()

    def _low(self, layer: int, part: str, name: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """Multiply ``x [head, n, d_in]`` by low weights of those heads, ``[head, n, d_out]``."""
        precision = self._shared.precision
        number_format = precision.format_of(part, layer)
        whole = self._copy(
            f"blocks.{layer}.attn.{name}", lambda: getattr(self._blocks[layer].attn, name), number_format
        )
        used, copy = precision.activation_format(number_format), of_heads(whole, heads)
        return low_product(x, None, copy, used, precision.scale, 0, precision.kernel)

    def _low_mlp(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Multiply ``x [..., d_in]`` by a low weight of the MLP, ``[..., d_out]``."""
        precision = self._shared.precision
        number_format = precision.format_of("mlp", layer)
        copy = self._copy(
            f"blocks.{layer}.mlp.{name}", lambda: getattr(self._blocks[layer].mlp, name), number_format
        )
        used = precision.activation_format(number_format)
        return low_product(x, None, copy, used, precision.scale, demand=precision.kernel)

    def _copy(self, name: str, read: Callable[[], Tensor], number_format: NumberFormat) -> Quantised:
        """Return the low copy of a weight, which is read only once."""
        if name not in self._copies:
            self._copies[name] = self._shared.low_copy(name, read(), number_format)
        return self._copies[name]


def some_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Select some heads of ``x [head, ...]``; a view if they are consecutive."""
    first, last = heads[0], heads[-1]
    adjoining = list(heads) == list(range(first, last + 1))
    return x[first : last + 1] if adjoining else x[list(heads)]


def consecutive(heads: Sequence[int]) -> Iterator[slice]:
    """Yield ascending heads as runs of consecutive ones."""
    first = heads[0]
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        if following != head + 1:
            yield slice(first, head + 1)
            first = following if following is not None else first


def of_heads(copy: Quantised, heads: Sequence[int]) -> Quantised:
    """Select the low weights of some heads."""
    scale = copy.scale if copy.scale.shape[0] == 1 else some_heads(copy.scale, heads)
    if copy.packed is None:
        return Quantised(some_heads(copy.codes, heads), scale)
    packed, (d_in, d_out) = some_heads(copy.packed, heads), copy.codes.shape[-2:]
    return Quantised(packed[..., :d_in, :d_out], scale, packed)


FEW_ROWS = 8
"""A pass over fewer rows than this goes on to the next destination of the stage."""


class Screen:
    """Mixed-precision products for the candidates under test."""

    def __init__(self, model: PatchableModel, own: OwnProducts, precision: PrecisionConfig) -> None:
        self._shared = investigation(precision, model_device(model))
        self._products = ScreenedProducts(model, own, self._shared)

    @property
    def few(self) -> int:
        """A pass over fewer rows than this goes on to the next destination of the stage."""
        return FEW_ROWS if self.only_changes else 1

    @property
    def only_changes(self) -> bool:
        """Whether a row without a change is the present state, free of rounding."""
        return self._shared.precision.only_changes

    def products(self, group: Sequence[Edge]) -> Products:
        """Return products in which the parts that the policy keeps high for ``group`` are high."""
        parts = (high_parts(self._shared.precision.policy, edge) for edge in group)
        self._shared.high = reduce(or_, parts)
        return self._products
