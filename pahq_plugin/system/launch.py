"""Support for commands that ``torchrun`` may start in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def launched() -> Iterator[Any]:
    """Yield the processes of this run: a `pahq_plugin.system.processes.World`, or `Alone` if there is
    only one, which imports nothing.

    Raises:
        DistributedError: the processes do not find each other, or a variable does not hold a number.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    from pahq_plugin.system.processes import launched as group

    with group() as world:
        yield world


class Alone:
    """The only process of a run."""

    rank, size, is_first = 0, 1, True

    def collect(self, value: Any) -> list[Any]:
        """Return the value of each process."""
        return [value]


ALONE = Alone()
