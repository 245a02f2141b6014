"""Searches of a small model, and what is printed of them, for several files of tests."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

from auto_circuit.utils.patchable_model import PatchableModel
from rich.console import Console

import pahq_plugin as pahq
from pahq_plugin.results.result import Discovery
from tests.helpers.small import loader


def search(model: PatchableModel, threshold: float, **others: Any) -> Discovery:
    others = {"method": "acdc", "metric": "mse", "progress": False} | others
    return pahq.discover(model, loader(), threshold=threshold, **others)


def printed(value: object, width: int = 120, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(value)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Parsed(HTMLParser):
    """Text of cells and what is open, so that an unescaped or unclosed tag shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data
