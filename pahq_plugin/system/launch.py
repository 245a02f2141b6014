"""Commands that ``torchrun`` may start several times over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def launched() -> Iterator[Any]:
    """The processes of this run, a `pahq_plugin.system.processes.World` or, where there is only this
    one, an `Alone`, for which nothing has to be imported.

    Raises:
        DistributedError: the processes do not find each other, or a variable that is no number.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    from pahq_plugin.system.processes import launched as group

    with group() as world:
        yield world


class Alone:
    """The one process of a run."""

    rank, size, is_first = 0, 1, True

    def collect(self, value: Any) -> list[Any]:
        """What each process has."""
        return [value]


ALONE = Alone()
