"""Pages for readers: their code blocks, headings and links.

A comment on the line before a fenced block, invisible to readers, says what is special about it:

==========================  ==================================================================
``<!-- not run: why -->``   never run; still checked as far as that is possible
``<!-- slow: why -->``      run in ``make test-full`` alone
``<!-- first: command -->`` a command to run before the block, which readers have run elsewhere
==========================  ==================================================================

A block with a ``title="name"`` in its info string is a file: it is written under that name.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"

RUN = ("python", "sh")
SHOWN = ("json", "text", "toml")
MARKS = ("not run", "slow", "first")

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<info>.*)$")
COMMENT = re.compile(r"^ *<!-- (?P<mark>[a-z ]+): (?P<text>.+?) -->$")
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?)(?: +\{ *#(?P<anchor>[\w-]+) *\})?$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\((?P<target>[^()\s]+)\)")
CODE = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line of content, from 1.
        language: the first word of its info string.
        title: the file that it is, or nothing.
        source: its content.
        marks: what comments before it say.
    """

    line: int
    language: str
    title: str
    source: str
    marks: dict[str, str]


def pages() -> list[Path]:
    """Every page for readers."""
    own = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    return own + sorted(DOCS.rglob("*.md"))


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(REPOSITORY))


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    marks: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if comment := COMMENT.match(line):
            marks[comment["mark"]] = comment["text"]
            continue
        if fence := FENCE.match(line):
            content = []
            for _, inner in lines:
                if inner.strip() == fence["fence"]:
                    break
                content.append(inner)
            title = re.search(r'title="([^"]+)"', fence["info"])
            language = fence["info"].split()[0] if fence["info"].strip() else ""
            source = textwrap.dedent("\n".join(content)) + "\n"
            yield Block(number + 1, language, title[1] if title else "", source, marks)
        marks = {}


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    kept, fence = [], ""
    for line in text.splitlines():
        found = FENCE.match(line)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif found:
            fence = found["fence"]
        else:
            kept.append(line)
    return "\n".join(kept)


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a page."""
    return [found["target"] for found in LINK.finditer(CODE.sub("", prose(text)))]


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page."""
    found = (HEADING.match(line) for line in prose(text).splitlines())
    return {match["anchor"] or slug(match["text"]) for match in found if match}


def slug(heading: str) -> str:
    """The anchor that a heading gets, on the site and where repositories are shown."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words).strip())
