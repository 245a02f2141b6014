"""What a run asks: one value that is checked once and handed to methods and engines whole."""

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
"""PyTorch takes none above it."""


@dataclass(frozen=True)
class Question:
    """Which circuit is looked for: the arguments of `discover`, checked.

    Attributes:
        model: the host model, borrowed for as long as the run lasts.
        loader: its prompts; read again by ablations that average over the data set.
        prompts: the batches that count; of several processes, the share of this one.
        ablation: what a patched edge carries.
        metric: name and function of the loss.
        edges: all edges of the model, in the order in which a search tests them.
        order: what that order is called.
        threshold: a search removes an edge if and only if its effect is below this.
        batches: how many batches of the loader were asked for; ``None`` for all.
        n_edges: circuit size of a method that scores edges; ``None`` for every edge whose score is not
            0.
        true_edges: the official circuit, for host algorithms that need it.
        precision: formats and policy that were asked for; ``None`` for the method's or the device's own.
        engine: ``"auto"``, one of ours, or of another package.
        everyone: the batches whole; empty where one process has them all.
        world: the processes that share the prompts.
        placement: where the model's weights and caches are; ``None`` for in place.
        max_memory: bytes that a search may take; ``None`` for no limit.
        checkpoint: file, and seconds between two writes.
        seed: of everything that is drawn.
        progress: whether to show how far the run is.
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


def check_numbers(*, threshold: object, batches: object, seed: object) -> None:
    """Refuse numbers out of range before anything is drawn.

    Args:
        threshold: must be finite and above 0.
        batches: how many batches of the loader count: above 0, or ``None`` for all.
        seed: must be at least 0 and below 2**63.

    Raises:
        ConfigError: one of them is not.
    """
    if not _is_number(threshold) or not 0 < threshold < math.inf:  # type: ignore[operator]
        raise ConfigError(f"threshold={threshold!r} must be a finite number above 0, for example 0.01")
    if batches is not None and (not _is_integer(batches) or batches < 1):  # type: ignore[operator]
        raise ConfigError(f"batches={batches!r} must be None (all) or an integer above 0")
    if not _is_integer(seed) or not 0 <= seed <= LARGEST_SEED:  # type: ignore[operator]
        raise ConfigError(f"seed={seed!r} must be an integer of at least 0, below 2**63")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is a number that a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return not abs(value) > sys.float_info.max
