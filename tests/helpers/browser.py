"""A headless Chromium for tests of pages, and what a page did that it must not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Path of an installed Chromium; without one the tests skip, and on CI they fail."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = f"no Chromium on the path ({', '.join(NAMES)}); apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a module."""
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """The page of a file, in a window of its own.

    At the end the test fails on errors and warnings of the console, which include violations of the
    page's security policy, and on requests for anything but the file itself.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    context.set_default_timeout(60_000)  # milliseconds; a busy machine is no failure
    page = context.new_page()
    faults: list[str] = []

    def refuse(dialog: Dialog) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("request", lambda request: faults.extend(_foreign(request.url, file)))
    page.on("dialog", refuse)
    try:
        page.goto(file.as_uri())
        yield page
        assert faults == []
    finally:
        context.close()


def _foreign(url: str, file: Path) -> list[str]:
    """The address, if it is neither the page nor data that the page made itself."""
    own = url == file.as_uri() or url.startswith(("data:", "blob:"))
    return [] if own else [f"request: {url}"]
