"""The report of a comparison: its folder, tables, charts, sentences and page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from pahq_plugin.compare.baselines import BASELINES
from pahq_plugin.compare.page.chart import STYLES, Chart, Series, style
from pahq_plugin.compare.page.charts import Frames, precision_charts, problem_charts
from pahq_plugin.compare.page.interactive import figure
from pahq_plugin.compare.page.page import Report, reference_threshold
from pahq_plugin.compare.page.readable import Table, decimals, interval, number
from pahq_plugin.compare.page.sentences import findings, rates, same_circuits, small_end
from pahq_plugin.compare.page.static import write_chart
from pahq_plugin.compare.page.write import reductions, troubles, write_report
from pahq_plugin.compare.plan import Plan, profile
from pahq_plugin.compare.run import Outcome
from pahq_plugin.errors import ConfigError
from tests.helpers.browser import browser, opened
from tests.report.small_comparison import compare

__all__ = ["browser"]

PROBLEM = "greater-than"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return compare(folder)


# Folder -------------------------------------------------------------------------------------------


def test_the_folder(report: Report, folder: Path) -> None:
    tables = {file.name for file in (folder / "tables").iterdir()}
    tidy = {f"{name}.{kind}" for name in vars(report.frames) for kind in ("csv", "json")}
    readable = {"across.md", "overview-greater-than.md", "circuits-greater-than.md", "precision.md"}
    assert tables == tidy | readable
    plots = {file.name for file in (folder / "plots").iterdir()}
    names = ["faithfulness-loss", "faithfulness-logit-diff", "time", "memory", "precision"]
    assert plots == {f"{name}-greater-than.{kind}" for name in names for kind in ("png", "svg")}
    for name, frame in vars(report.frames).items():
        read = pd.read_csv(folder / "tables" / f"{name}.csv")
        assert list(read.columns) == list(frame.columns) and len(read) == len(frame)
    assert not [file for file in folder.rglob(".*")]


@pytest.mark.full
def test_the_same_again(report: Report, folder: Path) -> None:
    """Nothing is searched again, and what does not hold times is the same, byte for byte."""
    kept = ("searches", "circuits", "points", "summary", "study")
    files = [folder / "tables" / f"{name}.csv" for name in kept]
    files += sorted((folder / "plots").glob("faithfulness-*.svg"))
    before = {file: file.read_bytes() for file in files}
    results = {file: file.stat().st_mtime_ns for file in folder.glob("*d/**/*.json")}
    assert len(results) == 7 * 3 + 4
    compare(folder)
    assert {file: file.read_bytes() for file in files} == before
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*d/**/*.json")} == results


def test_the_tables_say_what_was_found(report: Report) -> None:
    frames = report.frames
    searches = frames.searches[frames.searches["method"].isin(["pahq", "acdc"])]
    assert (searches["differing"] == 0).all() and len(searches) == 4
    points = frames.points.set_index(["method", "threshold"])
    for threshold in (0.003, 0.03):
        sizes = {points.loc[(m, threshold), "size"] for m in ("pahq", "acdc", "eap")}
        assert len(sizes) == 1  # the ranking is cut at the size of the FP32 circuit
        pd.testing.assert_series_equal(
            points.loc[("pahq", threshold)], points.loc[("acdc", threshold)], check_names=False
        )
    assert (points["faithfulness_loss_low"] <= points["faithfulness_loss"]).all()
    assert (points["faithfulness_loss"] <= points["faithfulness_loss_high"]).all()


def test_nothing_to_report(tmp_path: Path) -> None:
    empty = Plan(())
    with pytest.raises(ConfigError, match="nothing to report: no circuit is known"):
        refused = Outcome(refused={"ground-truth": "no circuit is known"})
        write_report(empty, tmp_path, refused, "", progress=False)
    with pytest.raises(ConfigError, match="nothing to report: no search was run"):
        write_report(empty, tmp_path, Outcome(), "", progress=False)
    assert not list(tmp_path.iterdir())


def test_without_judged_circuits(report: Report, folder: Path, tmp_path: Path) -> None:
    """A report is still written where every judgement failed."""
    (tmp_path / "found").symlink_to(folder / "found")
    bare = write_report(report.plan, tmp_path, Outcome(), "", progress=False)
    assert bare.frames.circuits.empty and reference_threshold(PROBLEM, bare) is None
    assert (tmp_path / "report.html").is_file()


# Tables -------------------------------------------------------------------------------------------


def test_markdown_and_html_of_a_table() -> None:
    table = Table("t", "Title", "How to <read> it.", ["method", "x"], [["a|b", "1"], ["<c>", "2"]])
    assert table.markdown().splitlines() == [
        "**Title.** How to <read> it.",
        "",
        "| method | x |",
        "|---|---:|",
        "| a\\|b | 1 |",
        "| <c> | 2 |",
    ]
    assert '<th scope="row">&lt;c&gt;</th><td>2</td>' in table.html()
    assert "How to &lt;read&gt; it." in table.html()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1,234"), (None, "–"), (math.nan, "–")],
)
def test_numbers(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_decimals_have_no_negative_zero() -> None:
    assert decimals(-0.0001) == "0.000" and decimals(-0.5, 1) == "-0.5"


def test_intervals() -> None:
    row = pd.Series({"a": 0.5, "a_low": 0.25, "a_high": 0.75, "b": 1.0, "b_low": 1.0, "b_high": 1.0})
    assert interval(row, "a") == "0.50 (0.25 to 0.75)"
    assert interval(row, "b") == "1.00"
    assert interval(row, "c") == "–"


# Charts -------------------------------------------------------------------------------------------


def test_charts_of_a_problem(report: Report) -> None:
    charts = {c.ident: c for c in problem_charts(PROBLEM, report.material, report.frames)}
    loss = charts["faithfulness-loss-greater-than"]
    assert [s.name for s in loss.series] == ["pahq", "acdc", "eap"]
    ours, exact, _ = loss.series
    assert (list(ours.x), list(ours.y)) == (list(exact.x), list(exact.y))
    dots = charts["time-greater-than"].series[0]
    assert set(dots.y) == {"pahq", "acdc", "eap"} and list(dots.x) == sorted(dots.x)
    (precision,) = precision_charts(report.frames)
    assert [s.name for s in precision.series] == ["unguarded@int4"]


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(STYLES) == set(BASELINES)
    looks = [(look.color, look.dash, look.marker) for look in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({style(f"x@{place}", place) for place in range(9)}) == 9


def test_equal_charts_give_equal_files(tmp_path: Path) -> None:
    chart = Chart("c", "T", "", "x", "y", [Series("pahq", [1, 2], [0.1, 0.2], [0, 0.1], [0.2, 0.3])])
    first = [file.read_bytes() for file in write_chart(chart, tmp_path / "a")]
    again = [file.read_bytes() for file in write_chart(chart, tmp_path / "b")]
    assert first == again and first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    other = replace(chart, series=[Series("pahq", [1, 2], [0.1, 0.3])])
    assert [file.read_bytes() for file in write_chart(other, tmp_path / "c")] != first


def test_texts_of_a_chart_cannot_become_markup() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    chart = Chart("c", hostile, hostile, hostile, hostile, [Series(hostile, [1], [1])])
    assert "<img" not in figure(chart) and figure(chart).count("</script>") == 1


# Sentences ----------------------------------------------------------------------------------------


def frames_of(points: list[dict], summary: list[dict], searches: list[dict]) -> Frames:
    nothing = pd.DataFrame()
    return Frames(
        pd.DataFrame(searches), nothing, nothing, pd.DataFrame(summary), pd.DataFrame(points), nothing
    )


def point(method: str, mean: float, low: float, high: float, threshold: float = 0.1) -> dict:
    behaviour = "faithfulness_loss"
    values = {behaviour: mean, f"{behaviour}_low": low, f"{behaviour}_high": high}
    return {"problem": "p", "method": method, "threshold": threshold, "size": 7.0} | values


@pytest.mark.parametrize(
    ("ours", "rival", "expected"),
    [
        (
            (0.9, 0.8, 0.95),
            (0.5, 0.4, 0.6),
            "is above that of eap in minus the loss (0.90 against 0.50",
        ),
        ((0.9, 0.5, 0.95), (0.7, 0.4, 0.8), "(0.90 against 0.70; intervals overlap)"),
        ((0.3, 0.2, 0.4), (0.7, 0.6, 0.8), "is below that of eap in minus the loss"),
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "equals that of eap in minus the loss (0.50)"),
    ],
)
def test_the_small_end(ours: tuple, rival: tuple, expected: str) -> None:
    """At the largest threshold that both have."""
    early = [point("pahq", 0.1, 0.1, 0.1, 0.01), point("eap", 1.0, 1.0, 1.0, 0.01)]
    points = [*early, point("pahq", *ours), point("eap", *rival), point("pahq", 0, 0, 0, 0.5)]
    sentence = small_end("p", frames_of(points, [], []))
    assert expected in sentence and "(threshold 0.1, 7 edges)" in sentence
    assert small_end("p", frames_of(early[:1], [], [])) == ""


def test_the_same_circuits_or_not() -> None:
    row = {"problem": "p", "method": "pahq", "edges": 100, "differing": 0.0}
    assert "in all 2 searches (200 decisions)" in same_circuits(frames_of([], [], [row, row]))
    worse = same_circuits(frames_of([], [], [row, row | {"differing": 3.0}]))
    assert "in 1 of 2 searches; 3 of 200 decisions differ" in worse
    assert same_circuits(frames_of([], [], [row | {"method": "eap", "differing": None}])) == ""


def test_rates_say_when_we_are_behind() -> None:
    rows = [
        {"problem": "p", "method": "pahq", "roc_auc": 0.9},
        {"problem": "p", "method": "host-acdc", "roc_auc": 0.95},
    ]
    (sentence,) = rates(frames_of([], rows, []))
    assert "pahq 0.900, host-acdc 0.950" in sentence and "pahq is below the host's loop" in sentence
    assert rates(frames_of([], [{"problem": "p", "method": "pahq"}], [])) == []


def test_all_sentences_of_a_report(report: Report) -> None:
    first, second = findings(report.frames)
    assert first.startswith("pahq found the circuit of acdc in FP32, edge for edge, in all 2 searches")
    assert second.startswith("On greater-than, where circuits are small (threshold 0.03")


def test_what_was_left_out(report: Report) -> None:
    assert list(reductions(report.plan, report.material)) == []
    assert list(troubles(Outcome({"a": "b"}, {"c": "d"}))) == ["Not possible: a: b.", "FAILED: c: d."]
    left_out = list(reductions(profile("reduced"), report.material))
    assert "host-acdc: 1 of 2 seeds and 1 of 4 thresholds (ioi)." in left_out


# Page ---------------------------------------------------------------------------------------------


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
