"""Digests of functions: equal for equal code, other for whatever changes what is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from pahq_plugin.system.fingerprint import function_digest


def source(text: str, **names: Any) -> Callable[..., Any]:
    """The function ``f`` that a text defines."""
    exec(compile(text, "somewhere", "exec"), names)
    return names["f"]


def closing_over(value: Any) -> Callable[[], Any]:
    return lambda: value


class Scaled:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        return self.factor * x


DIFFERENT: list[tuple[Any, Any]] = [
    (source("def f(x): return x + 1"), source("def f(x): return x + 2")),
    (source("def f(x): return x.abs()"), source("def f(x): return x.exp()")),
    (source("def f(x, y=1): return x + y"), source("def f(x, y=2): return x + y")),
    (source("def f(x, *, y=1): return x + y"), source("def f(x, *, y=2): return x + y")),
    (source("def f(x): return [a + 1 for a in x]"), source("def f(x): return [a + 2 for a in x]")),
    (source("def f(x): return x in {1, 2}"), source("def f(x): return x in {1, 3}")),
    (closing_over(1), closing_over(2)),
    (closing_over((1, [2])), closing_over((1, [3]))),
    (closing_over({"a": 1}), closing_over({"a": 2})),
    (closing_over(closing_over(1)), closing_over(closing_over(2))),
    (closing_over(torch.zeros(2)), closing_over(torch.ones(2))),
    (partial(closing_over, 1), partial(closing_over, 2)),
    (Scaled(1.0), Scaled(2.0)),
    (Scaled(1.0).__call__, closing_over(1)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_has_another_digest(one: Any, other: Any) -> None:
    assert function_digest(one) == function_digest(one) != function_digest(other)


def test_the_same_code_defined_again_has_the_same_digest() -> None:
    text = "def f(x): return sum(a for a in x if a in {'p', 'q', 'r'})"
    assert function_digest(source(text)) == function_digest(source("\n\n" + text))
    assert function_digest(closing_over(torch.ones(3))) == function_digest(closing_over(torch.ones(3)))


def test_whatever_it_closes_over_is_looked_at_briefly() -> None:
    """Models and objects that hold themselves among it."""
    itself: list[Any] = []
    itself.append(itself)
    for value in (torch.nn.Linear(3, 3), itself, object(), Scaled, len):
        assert function_digest(closing_over(value)) == function_digest(closing_over(value))


SCRIPT = (
    "from tests.system.test_fingerprint import *; print(*(function_digest(one) for one, _ in DIFFERENT))"
)


@pytest.mark.full
def test_digests_are_the_same_in_every_process() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(set(said[0].split())) == len(DIFFERENT)
