"""Which messages of errors some test names, told from the string literals of the tests.

A test names a message where one of its literals is a part of it: the message's gaps stand for any
text, and so do the wildcards of a literal that is a regular expression.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate

from tests.docs.markdown import REPOSITORY
from tests.docs.messages import GAP, Message

RUN, SHARED = 8, 10
"""Characters in a row, and letters in all, that a literal and a message must have in common."""

WILDCARDS = re.compile(r"(?:\\[dDwWsS]|\[[^\]]*\]|\.)[*+]\??|\\[dDwWsSb]|\{\w*\}")
"""Parts of a regular expression, or of a string to be formatted, that stand for other text."""


def unnamed(found: Iterable[Message], literals: Iterable[str]) -> list[Message]:
    """The messages that no literal is a part of."""
    index = runs_of(literals)
    return [message for message in found if not is_named(message.text, index)]


def is_named(text: str, index: dict[str, set[str]]) -> bool:
    """Whether a literal that shares a run of characters with a message is a part of it."""
    shared = Counter(literal for run in runs(text) for literal in index.get(run, ()))
    return any(is_part(literal, text) for literal, _ in shared.most_common())


def runs_of(literals: Iterable[str]) -> dict[str, set[str]]:
    """The literals by each run of characters in them."""
    index: dict[str, set[str]] = defaultdict(set)
    for literal in literals:
        for run in runs(literal):
            index[run].add(literal)
    return index


def runs(text: str) -> set[str]:
    """Every run of `RUN` characters without a gap."""
    every = (text[i : i + RUN] for i in range(len(text) - RUN + 1))
    return {run for run in every if GAP not in run}


def is_part(literal: str, text: str) -> bool:
    """Whether a literal may be found in a message; a gap in either stands for any text.

    Of the message's own letters it must hold `SHARED`, or all.
    """
    reached = dict.fromkeys(range(len(text) + 1), 0)
    for letter in literal:
        reached = after(letter, past_gaps(reached, text), text)
    own = sum(map(str.isalpha, text))
    return max(reached.values(), default=0) >= min(SHARED, own)


def past_gaps(places: dict[int, int], text: str) -> dict[int, int]:
    """Places in a message with the letters shared so far, and those behind a gap that ends there."""
    return further(places, {i + 1: n for i, n in places.items() if text[i : i + 1] == GAP})


def after(letter: str, places: dict[int, int], text: str) -> dict[int, int]:
    """Where in a message one can be after one more letter of a literal."""
    if letter == GAP:
        best = accumulate((places.get(i, -1) for i in range(len(text) + 1)), max)
        return {i: n for i, n in enumerate(best) if n >= 0}
    gaps = {i: n for i, n in places.items() if text[i : i + 1] == GAP}
    same = {i + 1: n + letter.isalpha() for i, n in places.items() if text[i : i + 1] == letter}
    return further(gaps, same)


def further(one: dict[int, int], other: dict[int, int]) -> dict[int, int]:
    """Both sets of places, each with its larger number of letters."""
    return {i: max(one.get(i, 0), other.get(i, 0)) for i in one.keys() | other.keys()}


@cache
def literals_of_tests() -> frozenset[str]:
    """The strings in all tests except those about the documentation, docstrings left out."""
    found: set[str] = set()
    for file in sorted((REPOSITORY / "tests").rglob("*.py")):
        if file.parent.name != "docs":
            found.update(literals(file.read_text(encoding="utf-8")))
    return frozenset(found)


def literals(source: str) -> Iterator[str]:
    """The strings of a source without its docstrings, each with gaps for its wildcards."""
    tree = ast.parse(source)
    told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    parts = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
    for node in ast.walk(tree):
        if id(node) in told or id(node) in parts:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from alternatives(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield from alternatives("".join(getattr(part, "value", GAP) for part in constants(node)))


def constants(node: ast.JoinedStr) -> list[ast.expr]:
    """The parts of a formatted string, the filled-in ones as gaps."""
    return [p if isinstance(p, ast.Constant) else ast.Constant(GAP) for p in node.values]


def alternatives(literal: str) -> list[str]:
    """What a literal may look for: as it stands, and as a regular expression."""
    told = " ".join(literal.split())
    pattern = re.sub(r"\\(.)", r"\1", WILDCARDS.sub(GAP, told))
    return [told, *(part.strip("()^$") for part in pattern.split("|"))]
