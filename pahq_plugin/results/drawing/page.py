"""Self-contained web pages: they fetch nothing, and text of a result cannot become markup."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

SCRIPT_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})


def asset(name: str) -> str:
    """Return the text of a file in ``assets``."""
    return (files("pahq_plugin.results.drawing") / "assets" / name).read_text(encoding="utf-8")


def scripts(names: Sequence[str]) -> str:
    """Join JavaScript files into one script with its own scope."""
    return "(() => {\n" + "\n".join(map(asset, names)) + "})();\n"


def json_text(data: object) -> str:
    """Return JSON that is safe inside a ``<script>`` element: nothing in it can end that element.

    It is plain ASCII, so JavaScript's line separators and lone surrogates do no harm.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate(SCRIPT_ESCAPES)


def page(title: str, body: str, *, css: str, js: str) -> str:
    """Return a whole HTML page; ``body`` is markup, and ``css`` is added to ``page.css``."""
    return Template(asset("page.html")).substitute(
        title=html.escape(title), css=asset("page.css") + css, body=body, js=js
    )
