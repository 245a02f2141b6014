"""What a target is, and which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.bench import Bench, Refused, Slow, Violation

MODULES = ("prompts", "results", "plans", "checkpoints", "stored", "graphs", "settings", "commands")
"""Modules of this package that list targets in a function ``targets``."""


@dataclass(frozen=True)
class Target:
    """One reader under fire.

    Attributes:
        name: for people and the command line.
        inputs: draws inputs, bytes for a file.
        check: gives an input to the reader; returns if it took it and was right.
        share: of all inputs of a run, in parts of those of a target with share 1.
        sample: how many inputs `make test` draws.
        files: valid files, for `tests.fuzz.guided`; none if inputs are no bytes.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any, Bench], None]
    share: float = 1.0
    sample: int = 60
    files: tuple[bytes, ...] = ()


def attempt(target: Target, content: Any, bench: Bench) -> bool:
    """Whether the reader took an input; ``False`` if it refused it, as it should say.

    A reader that was slow is tried once more: one that is slow by itself is slow twice.

    Raises:
        Violation: neither.
    """
    try:
        accepted = _attempt(target, content, bench)
    except Slow:
        bench.clean()
        accepted = _attempt(target, content, bench)
    bench.check_surroundings()
    return accepted


def _attempt(target: Target, content: Any, bench: Bench) -> bool:
    try:
        target.check(content, bench)
    except Refused:
        return False
    except Violation:
        raise
    except Exception as error:  # of the check itself, on what the reader accepted
        raise Violation(f"accepted, then {type(error).__name__}: {str(error)[:300]}") from error
    return True


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    found = [one for name in MODULES for one in import_module(f"tests.fuzz.{name}").targets()]
    return {target.name: target for target in found}
