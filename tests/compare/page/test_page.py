"""The report of a comparison: its folder, tables, charts, sentences and page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from pahq_plugin.compare.page.page import Report, circuits_to_show
from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.compare.tables import Finding, Material
from tests.helpers.browser import browser, opened

__all__ = ["browser"]


class _Ids(HTMLParser):
    """Ids of a page, and the places that its links lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [str(values["id"])] if "id" in values else []
        self.targets += [str(values["href"])[1:]] if tag == "a" else []


def test_links_lead_somewhere(report: Report, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    parser = _Ids()
    parser.feed(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.targets and set(parser.targets) <= set(parser.ids)
    assert "A small &lt;comparison&gt; &amp; more" in text


@pytest.fixture
def shown(report: Report, folder: Path, browser: Browser) -> Iterator:
    with opened(browser, folder / "report.html") as page:
        page.wait_for_selector(".chart .main-svg")
        yield page


def test_the_page_fetches_nothing_and_draws_every_chart(shown, report: Report) -> None:
    """`opened` fails on any request, error or violation of the security policy."""
    charts = shown.locator(".chart")
    assert charts.count() == 5
    for place in range(charts.count()):
        assert charts.nth(place).locator(".main-svg").count() > 0
        assert charts.nth(place).get_attribute("aria-label")
    assert shown.locator(".viewer").count() == 1


def test_the_page_is_accessible(shown) -> None:
    found = Axe().run(shown).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == []


def test_hovering_over_a_chart_shows_numbers(shown) -> None:
    chart = shown.locator("#faithfulness-loss-greater-than")
    chart.scroll_into_view_if_needed()
    chart.locator(".scatterlayer .point").first.hover(force=True)
    hover = chart.locator(".hoverlayer .hovertext").first
    hover.wait_for()
    assert re.search(r"\d", hover.text_content() or "")


def test_every_control_can_be_reached_with_the_keyboard(shown) -> None:
    names = set()
    for _ in range(60):
        shown.keyboard.press("Tab")
        names.add(shown.evaluate("document.activeElement.tagName"))
    assert {"A", "SELECT", "INPUT", "BUTTON"} <= names


def test_a_narrow_window_does_not_overflow(report: Report, folder: Path, browser: Browser) -> None:
    with opened(browser, folder / "report.html", width=400) as page:
        page.wait_for_selector(".chart .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_two_circuits_side_by_side(shown) -> None:
    shown.get_by_label("Compare with").select_option(index=2)
    text = shown.locator("[data-part=comparison]").inner_text()
    assert "Jaccard" in text


def test_the_json_of_a_page_is_no_markup(report: Report, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    assert len(blocks) == 6 and all("<" not in block and json.loads(block) for block in blocks)


def finding(method: str, threshold: float | None, seed: int = 0) -> Finding:
    decision = {"edge": "A0.0->Resid End", "seq_idx": None, "effect": 1.0, "kept": True, "exact": True}
    record = {
        "settings": {
            "method": method,
            "threshold": threshold,
            "metric": "kl_div",
            "ablation": "resample",
            "scored": threshold is None,
        },
        "model": {"name": "m", "edges": 1, "digest": ""},
        "decisions": [decision],
    }
    return Finding(Search(ProblemSpec("ioi"), method, threshold, seed), record, {})


def names_of(*found: Finding) -> list[str]:
    return [one["name"] for one in circuits_to_show("ioi", 0.1, Material(found, ()))]


def test_circuits_of_each_methods_first_seed_and_rankings_only_at_fp32s_size() -> None:
    names = names_of(finding("pahq", 0.1, 1), finding("eap", None), finding("pahq@int8", 0.1))
    assert len(names) == 1 and names[0].startswith("pahq")
    assert len(names_of(finding("acdc", 0.1), finding("eap", None), finding("pahq", 0.3))) == 2
