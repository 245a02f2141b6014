"""Links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, anchors, links, name_of, pages, slug

ELSEWHERE = ("http://", "https://", "mailto:")


def broken(page: Path) -> list[str]:
    """Links of a page that lead to no file, or to no heading of it."""
    found = []
    for target in links(page.read_text(encoding="utf-8")):
        if target.startswith(ELSEWHERE):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(goal.read_text(encoding="utf-8")):
            found.append(f"{target}: no such heading")
    return found


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page) == []


def test_tests_and_sources_that_pages_name_exist() -> None:
    found = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for path, name in re.findall(
            r"`((?:tests|pahq_plugin|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", text
        ):
            source = (REPOSITORY / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{name_of(page)}: {path}::{name}"
            found += bool(name)
    assert found > 5


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading: here\n\n```\n# none\n```\n")
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-here) [c](other.md#none) ![d](no.png) [e](#own)\n"
        "`[f](code.md)` [g](https://example.org/#x)\n"
    )
    assert broken(page) == [
        "other.md#none: no such heading",
        "no.png: no such file",
        "#own: no such heading",
    ]


def test_slugs() -> None:
    assert slug("What `Discovery` holds, and why") == "what-discovery-holds-and-why"
