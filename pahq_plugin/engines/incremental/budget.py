"""How much memory a search may take, and how many rows of a pass that allows.

More rows cost little time: products get larger, and the fixed cost of a pass is shared. But memory
grows with the rows, so a pass takes as many as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch

from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Step

ROW_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}
"""By kind of device: about how many bytes the rows of one pass hold."""

SCREENED_ROW_BYTES = {"cpu": 12 * 2**20, "cuda": 2**30}
"""The same for passes in low precision. More rows save more, since each such pass is followed by one in
full precision."""

LONE_ROW_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
"""The same for rows of the full model, each of which computes all heads. Smaller passes would take a
third longer on small models."""

CACHED_BYTES = {"cpu": 3 * 2**19, "cuda": 2**30}
"""By kind of device: bytes on which elementwise operations are fast. There are many of these between two
low-precision products."""

WORK_SHARE = 2
"""Temporaries within a step of a pass may take the bytes for rows divided by this."""

RELEASE_BYTES = 2**23
"""Freed memory is returned to the system after passes whose rows held this many bytes in all."""

MEMO_BYTES = {"cpu": 16 * 2**20, "cuda": 2**31}
"""By kind of device: bytes of memoised inputs of the present state, for all batches together."""

MEMO_PARTS = 1 + 1 / 4 + 1 / 2
"""All memos relative to that of inputs: inputs, residual streams, hidden layers of screened MLPs."""


@dataclass(frozen=True)
class Budget:
    """Bytes for the parts of a search.

    Attributes:
        rows: for the rows of a pass.
        screened_rows: for the rows of a pass in low precision.
        work: for the temporaries of a step, which works in parts if needed.
        cached: the same for elementwise work.
        memo: for memoised inputs of the present state.
    """

    rows: int
    screened_rows: int
    work: int
    cached: int
    memo: int

    @property
    def together(self) -> int:
        """Bytes that a search takes at a time, including the maps of narrow MLPs."""
        return max(self.rows, self.screened_rows) + self.work + int(MEMO_PARTS * self.memo) + self.maps

    @property
    def maps(self) -> int:
        """Bytes for the maps of narrow MLPs."""
        return self.memo // 2


def budget_for(device: torch.device, rows: int | None = None) -> Budget:
    """Return the usual budget on a device, with ``rows`` bytes for rows if given."""
    kind = device.type if device.type in ROW_BYTES else "cpu"
    screened = rows or SCREENED_ROW_BYTES[kind]
    rows = rows or ROW_BYTES[kind]
    return Budget(rows, screened, rows // WORK_SHARE, CACHED_BYTES[kind], MEMO_BYTES[kind])


def budget_within(device: torch.device, nbytes: int) -> Budget:
    """Return the usual budget, scaled down in proportion if it exceeds ``nbytes``."""
    usual = budget_for(device)
    share = min(1.0, nbytes / usual.together)
    return Budget(*(int(share * part) for part in astuple(usual)))


def lone_bytes(device: torch.device) -> int:
    """Return the usual bytes for the rows of a pass of the full model on a device."""
    return LONE_ROW_BYTES.get(device.type, LONE_ROW_BYTES["cpu"])


def row_bytes(steps: Sequence[Step], graph: KeptGraph, cfg: Any, prompts: int) -> int:
    """Compute the bytes that one row of a pass over ``steps`` holds.

    Args:
        steps: the cone.
        graph: the kept edges that the cone is of.
        cfg: the model's configuration.
        prompts: number of prompts of a batch.
    """
    working, lasting = zip(*(_step_numbers(step, graph, cfg) for step in steps), strict=True)
    start = max(len(slot.positions) for slot in steps[0].slots) * cfg.d_model
    return (max(working) + sum(lasting) + start) * prompts * cfg.dtype.itemsize


def row_products(steps: Sequence[Step], graph: KeptGraph, cfg: Any, prompts: int) -> int:
    """Count the multiplications of one row of a pass over ``steps``; arguments as of `row_bytes`."""
    return prompts * sum(_step_products(step, graph, cfg) for step in steps)


def _step_products(step: Step, graph: KeptGraph, cfg: Any) -> int:
    """Count the multiplications of a step per prompt of one row."""
    positions = len(step.positions)
    kind = graph.stages[step.stage].kind
    if kind == "output":
        return positions * cfg.d_model * cfg.d_vocab_out
    if kind == "mlp":
        return positions * cfg.d_model * cfg.d_mlp * (3 if cfg.gated_mlp else 2)
    inputs = sum(len(slot.members) * len(slot.positions) for slot in step.slots)
    outputs = len(step.heads) * positions
    return (inputs + outputs) * cfg.d_model * cfg.d_head + 2 * outputs * graph.shape.length * cfg.d_head


def _step_numbers(step: Step, graph: KeptGraph, cfg: Any) -> tuple[int, int]:
    """Count numbers per prompt of one row: those that a step works on (except what it computes in
    parts), and the changes that it leaves behind."""
    length, positions = graph.shape.length, len(step.positions)
    if graph.stages[step.stage].kind != "head":
        return 0, positions * cfg.d_model
    z = len(step.heads) * cfg.d_head
    pairs = len(step.heads) * positions * length
    return 6 * z * length + 2 * pairs, z * positions


def lone_row_bytes(at: int, graph: KeptGraph, cfg: Any, prompts: int) -> int:
    """Compute the bytes that a row into stage ``at`` of the full model takes, see `lone_rows`.

    Args:
        at: the stage.
        graph: the graph with every edge kept.
        cfg: the model's configuration.
        prompts: number of prompts of a batch.
    """
    later = range(at + 1, len(graph.stages))
    numbers = max((_onward_numbers(a, graph, cfg) for a in later), default=0)
    return max(numbers, _lone_numbers(at, graph, cfg)) * prompts * cfg.dtype.itemsize


def _onward_numbers(at: int, graph: KeptGraph, cfg: Any) -> int:
    """Count the numbers per prompt that a row holds while it passes stage ``at`` as a whole."""
    shape, stage = graph.shape, graph.stages[at]
    needs = graph.needs(at)
    read = int(np.any(needs, axis=(0, 1))[shape.first_change :].sum())
    if stage.kind != "head":
        return 4 * read * cfg.d_model  # stream, norm, outputs in parts and together
    z = stage.heads * cfg.d_head
    queries = int(np.any(needs[0], axis=0)[shape.first_change :].sum())
    pairs = stage.heads * queries * shape.length
    return 3 * read * cfg.d_model + 3 * queries * z + 2 * read * z + 4 * shape.length * z + 3 * pairs


def _lone_numbers(at: int, graph: KeptGraph, cfg: Any) -> int:
    """Count the numbers per prompt that a row holds at the stage whose input its edge changes; rows of
    the same source share the changed stream and its projections."""
    shape, stage = graph.shape, graph.stages[at]
    needs = graph.needs(at)
    read = int(np.any(needs, axis=(0, 1))[shape.first_change :].sum())
    if stage.kind != "head":
        return 4 * read * cfg.d_model
    queries = int(np.any(needs[0], axis=0)[shape.first_change :].sum())
    shared = read * (3 * cfg.d_model + 3 * stage.heads * cfg.d_head) // (stage.slots * stage.heads)
    own = 6 * shape.length * cfg.d_head + 3 * queries * shape.length + queries * cfg.d_model
    return shared + own
