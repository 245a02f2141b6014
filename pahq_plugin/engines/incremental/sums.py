"""The input of a destination on the rows of a pass: its present value plus the changes that feed it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A change of the input of one destination.

    Attributes:
        member: which of the destinations in question.
        value: ``[candidate or 1, batch, pos, d_model]``.
        at: indices of its positions in those in question; ``None`` for all.
        rows: its rows, of those in question.
    """

    member: int
    value: Tensor
    at: Tensor | None
    rows: slice


class Sum:
    """The present input of one destination plus changes, written where the inputs are gathered.

    Args:
        out: ``[candidate, batch, pos, d_model]``, not yet written.
        present: ``[batch, pos, d_model]``.
    """

    def __init__(self, out: Tensor, present: Tensor) -> None:
        self._out, self._present = out, present
        self._started = False

    def add(self, term: Term) -> None:
        """Add a change."""
        whole = term.rows == slice(0, len(self._out))
        if term.at is None and whole and not self._started:
            value = term.value if len(term.value) == len(self._out) else term.value.expand_as(self._out)
            torch.add(self._present, value, out=self._out)
            self._started = True
            return
        self.finish()
        out = self._out if whole else self._out[term.rows]
        if term.at is None:
            out += term.value
        else:
            out.index_add_(-2, term.at, term.value.expand(len(out), -1, -1, -1))

    def finish(self) -> None:
        """Write the present input if nothing has been added."""
        if not self._started:
            self._out.copy_(self._present)
            self._started = True
