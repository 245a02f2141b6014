"""The question of a run: one value, checked once and passed as a whole to methods and engines."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from pahq_plugin.choices import DEFAULT_THRESHOLD
from pahq_plugin.engines.placement.place import Placement
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import AblationType, Edge, PatchableModel, PromptDataLoader, PromptPairBatch
from pahq_plugin.metrics import Metric
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.processes import ALONE, World

LARGEST_SEED = 2**63 - 1
"""The largest seed that PyTorch accepts."""


@dataclass(frozen=True)
class Question:
    """Which circuit to find: the arguments of `discover`, checked.

    Attributes:
        model: the host model, borrowed for the length of the run.
        loader: its prompts; read again by ablations that average over the data set.
        prompts: the batches that the loss averages over; with several processes, this one's share.
        ablation: what a patched edge carries.
        metric: name and function of the loss.
        edges: all edges of the model, in the order in which a search tests them.
        order: name of that order.
        threshold: a search removes an edge if and only if its effect is below this.
        batches: number of batches requested from the loader; ``None`` for all.
        n_edges: wanted circuit size; ``None`` for what the threshold keeps or, for a method that scores
            edges, every edge with a non-zero score.
        steps: number of points between ablated and clean; ``None`` for the default.
        refine: number of screened edges to measure again in FP32, for a method that measures all edges;
            ``None`` for its default.
        true_edges: the official circuit, for host algorithms that need it.
        precision: requested formats and policy; ``None`` for the default of the method or the device.
        engine: ``"auto"``, or the name of an engine of ours or of another package.
        everyone: the batches of all processes together; empty if a single process has them all.
        world: the processes that share the prompts.
        placement: where the model's weights and caches are; ``None`` to leave them in place.
        max_memory: bytes that a search may take; ``None`` for no limit.
        checkpoint: file, and seconds between two writes.
        seed: seeds everything that is drawn.
        progress: whether to show the progress of the run.
    """

    model: PatchableModel
    loader: PromptDataLoader
    prompts: Sequence[PromptPairBatch]
    ablation: AblationType
    metric: tuple[str, Metric]
    _: KW_ONLY
    edges: Sequence[Edge] = ()
    order: str = "canonical"
    threshold: float = DEFAULT_THRESHOLD
    batches: int | None = 1
    n_edges: int | None = None
    steps: int | None = None
    refine: int | None = None
    true_edges: set[Edge] | None = None
    precision: PrecisionConfig | None = None
    engine: str = "auto"
    everyone: Sequence[PromptPairBatch] = ()
    world: World = ALONE
    placement: Placement | None = None
    max_memory: int | None = None
    checkpoint: tuple[Path, float] | None = None
    seed: int = 0
    progress: bool = False


def check_numbers(*, threshold: object, batches: object, seed: object, steps: object = None) -> None:
    """Refuse numbers out of range before anything is drawn.

    Args:
        threshold: must be finite and above 0.
        batches: number of batches to use: must be above 0, or ``None`` for all.
        seed: must be at least 0 and below 2**63.
        steps: must be above 0, or ``None`` for the default.

    Raises:
        ConfigError: one of them is out of range.
    """
    if not _is_number(threshold) or not 0 < threshold < math.inf:  # type: ignore[operator]
        raise ConfigError(f"threshold={threshold!r} must be a finite number above 0, for example 0.01")
    if batches is not None and (not _is_integer(batches) or batches < 1):  # type: ignore[operator]
        raise ConfigError(f"batches={batches!r} must be None (all) or an integer above 0")
    if steps is not None and (not _is_integer(steps) or steps < 1):  # type: ignore[operator]
        raise ConfigError(f"steps={steps!r} must be an integer above 0, for example 5")
    if not _is_integer(seed) or not 0 <= seed <= LARGEST_SEED:  # type: ignore[operator]
        raise ConfigError(f"seed={seed!r} must be an integer of at least 0, below 2**63")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is a number that a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return not abs(value) > sys.float_info.max
