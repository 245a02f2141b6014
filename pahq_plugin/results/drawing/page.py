"""Self-contained web pages: nothing is fetched, and no text of a result can become markup."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

SCRIPT_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})


def asset(name: str) -> str:
    """Text of a file of ``assets``."""
    return (files("pahq_plugin.results.drawing") / "assets" / name).read_text(encoding="utf-8")


def scripts(names: Sequence[str]) -> str:
    """JavaScript files as one script whose names stay its own."""
    return "(() => {\n" + "\n".join(map(asset, names)) + "})();\n"


def json_text(data: object) -> str:
    """JSON that may stand inside a ``<script>`` element: nothing in it can end that element.

    It is plain ASCII, so that line separators of JavaScript and halves of surrogate pairs are harmless.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate(SCRIPT_ESCAPES)


def page(title: str, body: str, *, css: str, js: str) -> str:
    """A whole HTML page.

    Args:
        title: plain text.
        body: markup, put in as it is.
    """
    return Template(asset("page.html")).substitute(
        title=html.escape(title), css=asset("page.css") + css, body=body, js=js
    )
