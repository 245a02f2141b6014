"""The site builds without a warning, asks no network for anything, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import pahq_exporters
import pahq_plugin
from tests.docs.markdown import DOCS, REPOSITORY


class Page(HTMLParser):
    """What a page names: its anchors, what it links to, what it loads.

    Attributes:
        anchors: values of ``id``.
        links: targets of ``a``.
        loads: what a browser fetches by itself.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in one tag."""
        values = {name: value for name, value in attrs if value}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href", ""))
        elif "src" in values:
            self.loads.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page of the site but the one for addresses that do not exist."""
    return {file: Page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}


def test_every_page_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def broken(file: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Links of a page within the site that lead to no file or no anchor."""
    for link in pages[file].links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        lost = parts.fragment and goal in pages and parts.fragment not in pages[goal].anchors
        if lost or not goal.exists():
            yield link


def test_links_of_the_site_lead_to_anchors(pages: dict[Path, Page]) -> None:
    for file in pages:
        assert not list(broken(file, pages)), file


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        foreign = [url for url in page.loads if urlsplit(url).scheme in ("http", "https")]
        assert not foreign, f"{file}: {foreign}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:", style.read_text(encoding="utf-8")), style


def test_public_names_are_on_the_pages(pages: dict[Path, Page], site: Path) -> None:
    for module, page in ((pahq_plugin, "api.html"), (pahq_exporters, "api-exporters.html")):
        anchors = {anchor.rpartition(".")[2] for anchor in pages[site / page].anchors}
        assert set(module.__all__) <= anchors, set(module.__all__) - anchors


def test_pictures_of_pages_can_be_heard() -> None:
    for page in DOCS.rglob("*.md"):
        for alt in re.findall(r"!\[([^\]]*)\]\(", page.read_text(encoding="utf-8")):
            assert len(alt) > 20, page
