"""The messages of errors, collected from the sources, and the entries of the page about them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.markdown import REPOSITORY

ROOTS = ("pahq_plugin", "exporters/pahq_exporters")
GAP = "…"
"""Stands for what differs from case to case."""

FEWEST_LETTERS = 8
"""A message with fewer letters of its own only passes on what another one says."""

INTERNAL = {"AttributeError"}


@dataclass(frozen=True)
class Message:
    """One place that makes an error.

    Attributes:
        where: file and line.
        kind: the error's class.
        text: its message with `GAP` for every part that is filled in.
    """

    where: str
    kind: str
    text: str


def messages() -> list[Message]:
    """Every message of both packages."""
    found = []
    for root in ROOTS:
        for file in sorted((REPOSITORY / root).rglob("*.py")):
            found += collect(file.read_text(encoding="utf-8"), str(file.relative_to(REPOSITORY)))
    return found


def collect(source: str, path: str) -> Iterator[Message]:
    """The messages of one source: the first argument of whatever is called ``...Error``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name.endswith("Error") and name not in INTERNAL:
            for text in texts(node.args[0]):
                yield Message(f"{path}:{node.lineno}", name, reduced(text))


def texts(node: ast.expr) -> list[str]:
    """What an expression may say, with gaps; an ``if`` says two things."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(texts(part)[0] for part in parts)]
        case ast.IfExp(body=one, orelse=other):
            return texts(one) + texts(other)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in texts(left) for b in texts(right)]
    return [GAP]


def reduced(text: str) -> str:
    """The text with one gap for what is between two constant parts, quotes around it included."""
    text = re.sub(rf"['\"]{GAP}['\"]", GAP, " ".join(text.split()))
    return re.sub(rf"{GAP}(?:\s*{GAP})+", GAP, text)


def is_told_elsewhere(message: Message) -> bool:
    """Whether a message has hardly a word of its own."""
    return sum(c.isalpha() for c in message.text) < FEWEST_LETTERS


def entries(page: Path) -> list[str]:
    """The messages that a page explains: lines of one code span, ahead of a definition."""
    return re.findall(r"^`(.+)`$", page.read_text(encoding="utf-8").replace("``", "`"), re.MULTILINE)


def explains(entry: str, message: Message) -> bool:
    """Whether an entry is the beginning of a message."""
    return message.text.startswith(entry.removesuffix(GAP).rstrip())
