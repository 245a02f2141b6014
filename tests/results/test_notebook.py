"""A result in a notebook: HTML that is escaped, runs nothing and takes the theme."""

from __future__ import annotations

import re

from pahq_plugin.results.notebook import result_html
from pahq_plugin.results.result import Discovery
from tests.helpers.records import decision, record_of
from tests.results.shown import Parsed


def test_html_has_the_rows_of_the_table(found: Discovery) -> None:
    page = Parsed(found._repr_html_())
    assert not page.open
    rows = [page.cells[i : i + 5] for i in range(0, len(page.cells), 5)]
    assert [(row[1], row[2]) for row in rows] == [
        (kept.edge.name, f"{kept.effect:.3g}") for kept in found.top(20)
    ]
    assert {row[4] for row in rows} <= {"FP32", "screened"}


def test_html_asks_nothing_of_a_network_and_runs_nothing(found: Discovery) -> None:
    text = found._repr_html_()
    assert not Parsed(text).tags & {"script", "link", "img", "iframe"}
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_html_takes_the_theme_of_the_notebook(found: Discovery) -> None:
    """No background and no text colour of its own: it is as readable in a dark theme as in a light."""
    style = found._repr_html_().split("</style>")[0]
    assert set(re.findall(r"(?<![-\w])color: ([^;}]+)", style)) == {"inherit"}
    backgrounds = re.findall(r"([^{}]+)\{[^}]*background: (#[0-9a-f]+)", style)
    assert [("bar" in selector) for selector, _ in backgrounds] == [True, True]


def test_html_is_escaped() -> None:
    name = "<script>alert(1)</script>&amp;\"'->B"
    record = record_of([decision(name, 1.0), decision("A->B", -0.5)], name="<b>m")
    record["settings"]["metric"] = "<i>mine"
    page = Parsed(result_html(record, {}, 5))
    assert not page.tags & {"script", "b", "i"} and page.cells[1] == name
