"""How much memory a search may take, and how many rows of a pass that allows.

Rows are cheap to have many of: their products are larger and the costs of a pass are shared. But what
they hold grows with them, so a pass takes as many as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Step

ROW_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}
"""By kind of device: rows of one pass are chosen so that what they hold takes about this much."""

SCREENED_ROW_BYTES = {"cpu": 12 * 2**20, "cuda": 2**30}
"""The same for passes in few bits. What they save grows with their rows, since each is followed by a
pass in full precision."""

CACHED_BYTES = {"cpu": 3 * 2**19, "cuda": 2**30}
"""By kind of device: what an elementwise operation is quick on. Between two products in few bits there
are many."""

WORK_SHARE = 2
"""What lives only within a step of a pass takes this part of it once more."""

RELEASE_BYTES = 2**23
"""After passes whose rows held so much together, freed memory is given back to the system."""

MEMO_BYTES = {"cpu": 16 * 2**20, "cuda": 2**31}
"""By kind of device: inputs of the present state that are remembered, all batches together."""

MEMO_PARTS = 1 + 1 / 4 + 1 / 2
"""What is remembered in all: besides inputs, residual streams, and hidden layers of screened MLPs."""


@dataclass(frozen=True)
class Budget:
    """Bytes for the parts of a search.

    Attributes:
        rows: what the rows of a pass hold.
        screened_rows: what those of a pass in few bits hold.
        work: what a step of it works on, in parts if need be.
        cached: the same, where it is worked on elementwise.
        memo: what is remembered of the present state.
    """

    rows: int
    screened_rows: int
    work: int
    cached: int
    memo: int

    @property
    def together(self) -> int:
        """What a search takes at a time, narrow MLPs' maps included."""
        return max(self.rows, self.screened_rows) + self.work + int(MEMO_PARTS * self.memo) + self.maps

    @property
    def maps(self) -> int:
        """What narrow MLPs remember."""
        return self.memo // 2


def budget_for(device: torch.device, rows: int | None = None) -> Budget:
    """The usual budget on a device, or one with another number of bytes for ``rows``."""
    kind = device.type if device.type in ROW_BYTES else "cpu"
    screened = rows or SCREENED_ROW_BYTES[kind]
    rows = rows or ROW_BYTES[kind]
    return Budget(rows, screened, rows // WORK_SHARE, CACHED_BYTES[kind], MEMO_BYTES[kind])


def budget_within(device: torch.device, nbytes: int) -> Budget:
    """The usual budget, or where ``nbytes`` are less than that takes, the same part of everything."""
    usual = budget_for(device)
    share = min(1.0, nbytes / usual.together)
    return Budget(*(int(share * part) for part in astuple(usual)))


def row_bytes(steps: Sequence[Step], graph: KeptGraph, cfg: Any, prompts: int) -> int:
    """What one row of a pass over ``steps`` holds.

    Args:
        steps: the cone.
        graph: whose cone it is.
        cfg: the model's configuration.
        prompts: number of prompts of a batch.
    """
    working, lasting = zip(*(_step_numbers(step, graph, cfg) for step in steps), strict=True)
    start = max(len(slot.positions) for slot in steps[0].slots) * cfg.d_model
    return (max(working) + sum(lasting) + start) * prompts * cfg.dtype.itemsize


def _step_numbers(step: Step, graph: KeptGraph, cfg: Any) -> tuple[int, int]:
    """Numbers per prompt of one row: of what a step works on, but for what it makes in parts, and of
    the changes that it leaves behind."""
    length, positions = graph.shape.length, len(step.positions)
    if graph.stages[step.stage].kind != "head":
        return 0, positions * cfg.d_model
    z = len(step.heads) * cfg.d_head
    pairs = len(step.heads) * positions * length
    return 6 * z * length + 2 * pairs, z * positions
