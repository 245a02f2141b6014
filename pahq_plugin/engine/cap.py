"""How many rows a pass may have, where memory turned out to be short.

When a pass runs out of memory the cap halves and the pass is run again; after some passes that went
well it doubles, since other passes may leave more room. After each failure it takes twice as many.
Where memory runs out elsewhere, or in one of several processes, the search ends: a checkpoint holds
decisions only, never a half-changed state.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.heap import is_out_of_memory, release_unused

log = logging.getLogger(__name__)

GOOD_PASSES = 16
"""After so many passes without trouble the cap doubles, at first."""


class RowCap:
    """The cap of one engine.

    Args:
        most: rows of the largest pass there can be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._good, self._wanted = 0, GOOD_PASSES // 2
        self.rows = most

    def shrink(self, error: BaseException) -> None:
        """Halve the cap and free what can be freed.

        Args:
            error: what a pass with that cap ended with.

        Raises:
            ModelError: the smallest pass does not fit.
        """
        traceback.clear_frames(error.__traceback__)  # they hold what the pass held
        if self.rows == 1:
            raise ModelError(
                "memory is too short for the smallest pass: one patched forward, three where screened "
                "edges are decided again; pass a smaller batch_size, fewer prompts, or method='acdc'"
            ) from error
        self.rows //= 2
        self._good, self._wanted = 0, 2 * self._wanted
        log.warning("out of memory: passes of at most %d rows from now on", self.rows)
        gc.collect()
        release_unused()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def passed(self) -> None:
        """Take in that a pass went well."""
        if self.rows == self._most:
            return
        self._good += 1
        if self._good == self._wanted:
            self._good = 0
            self.rows = min(self._most, 2 * self.rows)


@contextmanager
def memory_shortage_named() -> Iterator[None]:
    """
    Raises:
        ModelError: memory ran out inside, and not where a smaller pass helps.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"memory ran out ({one_line(error) or type(error).__name__}); pass a smaller batch_size, "
            "fewer prompts, or max_memory; a search with a checkpoint goes on from it"
        ) from error
