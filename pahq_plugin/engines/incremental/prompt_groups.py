"""Prompts of a batch that begin to change at the same position.

With causal attention and resample ablation nothing in a prompt changes before the first token in which
it differs from its corrupt prompt, and prompts differ in that position. Grouped by it, they form
rectangles ``[prompt, pos]`` in which every token changes, so that nothing is computed in vain and
nothing has to be gathered token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pahq_plugin.engines.incremental.positions import Ints

MOST_GROUPS = 4
"""Groups of a batch at most, since products of few prompts are slow."""


@dataclass(frozen=True)
class PromptGroup:
    """Some prompts of a batch.

    Attributes:
        prompts: their indices, ascending, ``[prompt]``.
        first: position before which nothing changes in any of them.
    """

    prompts: Ints
    first: int


def prompt_groups(first_changes: Ints, length: int, most: int = MOST_GROUPS) -> list[PromptGroup]:
    """Group prompts by the position at which they begin to change; those that never do are left out.

    While there are more than ``most`` groups, the two neighbours are merged that need the fewest
    additional tokens.

    Args:
        first_changes: per prompt the position before which nothing ever changes, ``[prompt]``.
        length: number of positions; a prompt that begins there never changes.
        most: number of groups at most.
    """
    firsts = np.unique(first_changes[first_changes < length])
    groups = [PromptGroup(np.flatnonzero(first_changes == first), int(first)) for first in firsts]
    while len(groups) > most:
        added = [len(b.prompts) * (b.first - a.first) for a, b in pairwise(groups)]
        at = int(np.argmin(added))
        earlier, later = groups[at : at + 2]
        prompts = np.sort(np.concatenate([earlier.prompts, later.prompts]))
        groups[at : at + 2] = [PromptGroup(prompts, earlier.first)]
    return groups
