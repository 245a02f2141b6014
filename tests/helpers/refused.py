"""What refusals have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.errors import PahqError
from tests.helpers.lent import unusual_state


class Interrupted:
    """A function that fails at the n-th call; ``None`` fails at every call."""

    def __init__(self, call: Any, at: int, error: BaseException) -> None:
        self.call, self.left, self.error = call, at, error

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.call is None or self.left == 0:
            raise self.error
        return self.call(*arguments, **keywords)


@contextmanager
def refused(error: type[PahqError], *words: str) -> Iterator[None]:
    """The block raises ``error`` in one line that holds ``words``."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1, message
    for word in words:
        assert word in message, message


def refused_untouched(
    error: type[PahqError], words: tuple[str, ...], model: PatchableModel, call: Callable[[], object]
) -> None:
    """``call`` raises ``error`` in one line that holds ``words``, and ``model`` stays as it was."""
    before = unusual_state(model)
    with refused(error, *words):
        call()
    before.assert_unchanged()


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """The block leaves every file below ``folder`` as it is, and makes none."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files and folders below one."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}
