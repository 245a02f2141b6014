"""How an incremental engine screens: the products of the chosen precision for what is under test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from pahq_plugin.attention import investigation
from pahq_plugin.backend import model_device
from pahq_plugin.config import PrecisionConfig
from pahq_plugin.engine.products import OwnProducts, Products, ScreenedProducts
from pahq_plugin.host import Edge, PatchableModel
from pahq_plugin.policy import high_parts

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
