"""The viewer in a headless Chromium, as people use it: mouse, keyboard, filters, comparison.

Every test fails on errors of the console and on any request (see `opened`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from pahq_plugin.results.drawing.circuit_graph import circuit_data, graph_page
from tests.helpers.browser import browser, opened
from tests.helpers.records import decision, random_record, record_of

__all__ = ["browser"]  # the fixture

Open = Callable[..., AbstractContextManager[Page]]

SMALL = record_of([
    decision("Resid Start->A0.0.Q", 0.001),
    decision("Resid Start->A0.0.V", 0.5, exact=False),
    decision("Resid Start->A0.1.K", 0.02),
    decision("A0.0->MLP 0", 0.1),
    decision("A0.1->MLP 0", 0.0123),
    decision("MLP 0->Resid End", 1.0),
    decision("Resid Start->A0.1.Q", 0.0, kept=False),
])  # fmt: skip
OTHER = record_of([
    *(decision(e["edge"], e["effect"], e["effect"] >= 0.1) for e in SMALL["decisions"][:-1]),
    decision("Resid Start->A0.1.Q", 0.3),
])  # fmt: skip
"""Of the six edges of `SMALL` it has three, and one more."""


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Open:
    """Opens a page of some records; keyword arguments go to `graph_page` and `opened`."""

    def show(*records: dict[str, Any], compare: bool = False, width: int = 1200) -> Any:
        file = tmp_path / "page.html"
        circuits = [circuit_data(record, f"circuit {n}") for n, record in enumerate(records, start=1)]
        file.write_text(graph_page(circuits, "Circuits", compare=compare), encoding="utf-8")
        return opened(browser, file, width)

    return show


def panel(page: Page, index: int = 0) -> Locator:
    return page.locator("figure").nth(index)


def edges(page: Page, index: int = 0, kind: str = "") -> Locator:
    """The edges drawn in a panel, of a kind such as ``.both``."""
    return panel(page, index).locator(f".edge{kind}:not([hidden])")


def nodes(page: Page) -> Locator:
    return panel(page).locator(".node:not([hidden])")


def node(page: Page, name: str, index: int = 0) -> Locator:
    return panel(page, index).locator(".node", has=page.locator(f"text.name:text-is('{name}')"))


def hover_edge(page: Page, edge: Locator) -> None:
    """Puts the mouse on the middle of an edge, which its bounding box need not hold."""
    x, y = edge.locator(".hit").evaluate(
        "path => { const point = path.getPointAtLength(path.getTotalLength() / 2)"
        ".matrixTransform(path.getScreenCTM()); return [point.x, point.y]; }"
    )
    page.mouse.move(x, y)


def status(page: Page) -> Locator:
    return page.locator("[data-part='status']")


def set_slider(page: Page, step: int) -> None:
    page.get_by_label("at least").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )


def test_parts_between_two_nodes_are_one_line(shown: Open) -> None:
    with shown(SMALL) as page:
        expect(status(page)).to_have_text("Showing 6 of 6 edges.")
        expect(edges(page)).to_have_count(5)
        expect(nodes(page)).to_have_count(5)
        expect(page.get_by_label("Compare with")).to_be_hidden()  # there is nothing to compare with


def test_the_mouse_on_an_edge_shows_its_numbers(shown: Open) -> None:
    with shown(SMALL) as page:
        hover_edge(page, edges(page).nth(2))  # the strongest is drawn last
        tooltip = panel(page).locator(".tooltip")
        expect(tooltip).to_have_text("A0.0 → MLP 0effect 0.1decided on FP32")
        expect(page.locator(".node.lit")).to_have_count(2)
        expect(page.locator(".edge.lit")).to_have_count(1)
        page.mouse.move(5, 5)
        expect(tooltip).to_be_hidden()
        expect(page.locator(".lit")).to_have_count(0)


def test_an_edge_with_several_parts_shows_each(shown: Open) -> None:
    with shown(SMALL) as page:
        hover_edge(page, edges(page).nth(3))
        expect(panel(page).locator(".tooltip tr")).to_have_text([
            "Resid Start → A0.0.Veffect 0.5screened", "Resid Start → A0.0.Qeffect 0.001decided on FP32",
        ])  # fmt: skip
        expect(panel(page).locator(".tooltip .heading")).to_have_text("Resid Start → A0.0: 2 edges")


def test_the_mouse_on_a_node_lights_its_edges(shown: Open) -> None:
    with shown(SMALL) as page:
        node(page, "A0.0").hover()
        expect(panel(page).locator(".tooltip .heading")).to_have_text(
            "A0.0, attention head: 2 in, 1 out"
        )
        expect(page.locator(".edge.lit")).to_have_count(2)
        expect(page.locator(".node.lit")).to_have_count(3)


def test_the_keyboard_reaches_nodes_and_edges(shown: Open) -> None:
    with shown(SMALL) as page:
        page.get_by_role("button", name="Save as SVG").focus()
        page.keyboard.press("Tab")
        focused, tooltip = page.locator(":focus"), panel(page).locator(".tooltip")
        expect(focused).to_have_attribute("aria-label", "Resid Start, input: 0 in, 3 out; "
            "Resid Start → A0.0.V, effect 0.5; Resid Start → A0.1.K, effect 0.02; "
            "Resid Start → A0.0.Q, effect 0.001")  # fmt: skip
        expect(tooltip).to_be_visible()
        page.keyboard.press("ArrowUp")
        expect(tooltip).to_contain_text("A0.0, attention head")
        page.keyboard.press("ArrowRight")
        expect(tooltip).to_contain_text("A0.1, attention head")
        page.keyboard.press("Enter")  # onto its strongest edge
        expect(focused).to_have_attribute(
            "aria-label", "Resid Start → A0.1.K, effect 0.02, decided on FP32"
        )
        page.keyboard.press("ArrowRight")
        expect(tooltip).to_contain_text("A0.1 → MLP 0effect 0.0123")
        page.keyboard.press("Escape")
        expect(tooltip).to_contain_text("A0.1, attention head")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")  # to the other end
        expect(tooltip).to_contain_text("Resid Start, input")
        assert page.locator("svg [tabindex='0']").count() == 1
        outline = focused.locator(".shape").evaluate("shape => getComputedStyle(shape).strokeWidth")
        assert outline == "3.5px"
        page.keyboard.press("Tab")  # out of the picture
        expect(tooltip).to_be_hidden()


def test_the_strongest_edges(shown: Open) -> None:
    with shown(SMALL) as page:
        page.get_by_label("Strongest").fill("2")
        expect(status(page)).to_have_text("Showing 2 of 6 edges.")
        expect(edges(page)).to_have_count(2)
        expect(nodes(page)).to_have_count(4)
        page.get_by_label("All nodes").check()
        expect(nodes(page)).to_have_count(5)
        expect(panel(page).locator(".node.unused")).to_have_count(1)
        page.get_by_label("Strongest").fill("")
        expect(status(page)).to_have_text("Showing 6 of 6 edges.")
        page.get_by_label("Strongest").fill("0")
        expect(edges(page)).to_have_count(0)
        page.get_by_role("button", name="Show all").click()
        expect(edges(page)).to_have_count(5)


def test_the_slider_is_logarithmic(shown: Open) -> None:
    with shown(SMALL) as page:
        set_slider(page, 1)
        expect(page.locator("[data-part='least-shown']")).to_have_text("0.001")
        expect(status(page)).to_have_text("Showing 6 of 6 edges.")
        set_slider(page, 101)  # 0.001 * 1000 ** (100 / 199)
        expect(page.locator("[data-part='least-shown']")).to_have_text("0.0322")
        expect(status(page)).to_have_text("Showing 3 of 6 edges.")
        expect(edges(page)).to_have_count(3)
        set_slider(page, 200)
        expect(status(page)).to_have_text("Showing 1 of 6 edges.")


def test_a_weaker_part_that_is_filtered_out_is_not_told(shown: Open) -> None:
    with shown(SMALL) as page:
        page.get_by_label("Strongest").fill("5")
        hover_edge(page, edges(page).nth(3))
        expect(panel(page).locator(".tooltip tr")).to_have_text(
            ["Resid Start → A0.0.Veffect 0.5screened"]
        )


def test_two_circuits_side_by_side(shown: Open) -> None:
    with shown(SMALL, OTHER) as page:
        expect(panel(page, 1)).to_be_hidden()
        page.get_by_label("Compare with").select_option("circuit 2")
        expect(page.locator("[data-part='comparison']")).to_have_text(
            "3 edges in both, 3 only in A, 1 only in B: Jaccard index 0.43 "
            "(edges in both over edges in either)."
        )
        expect(status(page)).to_have_text("Showing 6 of 6 edges of A and 4 of 4 edges of B.")
        expect(edges(page, 0, ".both")).to_have_count(3)
        expect(edges(page, 0, ".only-a")).to_have_count(3)  # one shares its nodes with an edge in both
        expect(edges(page, 1, ".both")).to_have_count(3)
        expect(edges(page, 1, ".only-b")).to_have_count(1)
        expect(page.locator(".legend")).to_contain_text("in both (3)only in A (3)only in B (1)")
        places = [node(page, "MLP 0", index).get_attribute("transform") for index in (0, 1)]
        assert places[0] == places[1]
        node(page, "A0.0").hover()
        expect(panel(page, 1).locator(".node.lit")).to_have_count(3)
        page.get_by_label("Compare with").select_option("nothing")
        expect(panel(page, 1)).to_be_hidden()
        expect(page.locator("[data-part='comparison']")).to_be_hidden()


def test_a_circuit_of_another_model_is_no_candidate(shown: Open) -> None:
    with shown(SMALL, random_record(10), OTHER) as page:
        options = page.get_by_label("Compare with").locator("option")
        expect(options).to_have_text(["nothing", "circuit 3"])
        page.locator("[data-part='first']").select_option("circuit 2")
        expect(options).to_have_text(["nothing"])
        expect(status(page)).to_have_text("Showing 10 of 10 edges.")


def test_the_table_sorts_and_points(shown: Open) -> None:
    with shown(SMALL) as page:
        page.get_by_text("Table of the edges shown").click()
        effects = page.locator(".edges tbody td.number")
        expect(effects).to_have_text(["1", "0.5", "0.1", "0.02", "0.0123", "0.001"])
        page.get_by_role("button", name="Effect").click()
        expect(effects).to_have_text(["0.001", "0.0123", "0.02", "0.1", "0.5", "1"])
        expect(page.get_by_role("columnheader", name="Effect")).to_have_attribute(
            "aria-sort", "ascending"
        )
        page.get_by_role("button", name="Destination").click()
        expect(page.locator(".edges tbody tr td:nth-child(2)")).to_have_text(
            ["A0.0.Q", "A0.0.V", "A0.1.K", "MLP 0", "MLP 0", "Resid End"]
        )
        page.get_by_role("button", name="Resid Start → A0.1.K").focus()
        expect(page.locator(".edge.lit")).to_have_count(1)
        expect(page.locator(".node.lit")).to_have_count(2)
        page.get_by_label("Strongest").fill("1")
        expect(page.locator(".edges tbody tr")).to_have_count(1)


def test_the_table_of_a_comparison(shown: Open) -> None:
    with shown(SMALL, OTHER, compare=True) as page:
        page.get_by_text("Table of the edges shown").click()
        expect(page.locator("thead th")).to_have_text(
            ["Source", "Destination", "In", "Effect in A ▼", "Effect in B"]
        )
        row = page.locator(".edges tr", has=page.get_by_role("button", name="Resid Start → A0.1.Q"))
        expect(row.locator("td")).to_have_text(["A0.1.Q", "only B", "", "0.3"])


def test_positions_have_a_column(shown: Open) -> None:
    record = record_of(decision("A0.0->MLP 0", 0.1 * n, seq_idx=n) for n in (1, 2, 3))
    with shown(record) as page:
        expect(edges(page)).to_have_count(1)
        hover_edge(page, edges(page))
        expect(panel(page).locator(".tooltip tr").first).to_contain_text("A0.0 → MLP 0 @3effect 0.3")
        page.get_by_text("Table of the edges shown").click()
        page.get_by_role("button", name="Position").click()
        expect(page.locator(".edges tbody tr td:nth-child(3)")).to_have_text(["3", "2", "1"])


def test_zoom_and_pan(shown: Open) -> None:
    def view() -> list[float]:
        return [float(n) for n in (svg.get_attribute("viewBox") or "").split()]

    with shown(SMALL) as page:
        svg = panel(page).locator(".stage svg")
        whole = view()
        page.get_by_role("button", name="Zoom in").click()
        assert view()[2] == pytest.approx(whole[2] / 1.3, abs=0.1)
        page.get_by_role("button", name="Fit").click()
        assert view() == whole
        svg.hover()
        page.mouse.wheel(0, -100)  # without Ctrl the page scrolls
        assert view() == whole
        page.keyboard.down("Control")
        page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        expect(svg).not_to_have_attribute("viewBox", " ".join(f"{n:.2f}" for n in whole))
        assert view()[2] == pytest.approx(whole[2] / 1.3, abs=0.1)
        before = view()
        box = svg.bounding_box()
        assert box
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 100, box["y"] + 40)
        page.mouse.up()
        page.mouse.move(box["x"] + 300, box["y"] + 40)  # let go: nothing moves
        assert view()[0] == pytest.approx(before[0] - 60 * before[2] / box["width"], abs=1)
        node(page, "A0.0").evaluate("drawn => { drawn.setAttribute('tabindex', 0); drawn.focus(); }")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("0")
        assert view() == whole
        page.keyboard.press("+")
        assert view()[2] < whole[2]


def test_the_saved_picture_stands_alone(shown: Open, tmp_path: Path) -> None:
    with shown(SMALL, OTHER, compare=True) as page:
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as SVG").click()
        assert download.value.suggested_filename == "circuit.svg"
        download.value.save_as(tmp_path / "saved.svg")
        root = ElementTree.parse(tmp_path / "saved.svg").getroot()
        paths = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-dasharray")]
        assert len(paths) == 4 and not any(element.get("class") for element in root.iter())
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "A: circuit 1" in texts and "B: circuit 2" in texts and texts.count("MLP 0") == 2


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (record_of([]), "Showing 0 of 0 edges."),
        (record_of([decision("a->b", 1.0, False)]), "Showing 0 of 0 edges."),
        (record_of([decision("a->b", 1.0)]), "Showing 1 of 1 edge."),
        (record_of(decision(f"a->b{n}", 0.5) for n in range(3)), "Showing 3 of 3 edges."),
        (record_of(decision(f"a->b{n}", 0.0) for n in range(3)), "Showing 3 of 3 edges."),
        (record_of([decision("a->b", 1e-320), decision("a->c", -1e300)]), "Showing 2 of 2 edges."),
        (random_record(20, signed=True), "Showing 20 of 20 edges."),
    ],
    ids=["no nodes", "none kept", "one", "equal", "zero", "extreme", "twenty"],
)
def test_circuits_of_any_kind_are_shown(shown: Open, record: dict[str, Any], text: str) -> None:
    with shown(record, record, compare=True) as page:
        page.get_by_label("Compare with").select_option("nothing")
        expect(status(page)).to_have_text(text)
        page.get_by_text("Table of the edges shown").click()
        for step in (0, 1, 100, 200):
            set_slider(page, step)
        for name in ("Zoom in", "Zoom out", "Fit"):
            page.get_by_role("button", name=name).click()
        for key in ("Tab", "Tab", "ArrowUp", "Enter", "ArrowLeft", "Escape", "Enter", "Enter"):
            page.keyboard.press(key)
        assert page.locator(".hit[d*=NaN], .line[d*=NaN], [viewBox*=NaN]").count() == 0


def test_two_thousand_edges_start_with_the_strongest_and_stay_fluid(shown: Open) -> None:
    record = random_record(2000, n_layers=8, n_heads=8, signed=True)
    with shown(record) as page:
        expect(status(page)).to_contain_text("Showing 200 of 2,000 edges. Large circuits start")
        start = time.perf_counter()
        page.get_by_role("button", name="Show all").click()
        expect(status(page)).to_have_text("Showing 2,000 of 2,000 edges.")
        node(page, "MLP 3").hover()
        expect(panel(page).locator(".tooltip")).to_contain_text("MLP 3: ")
        page.get_by_text("Table of the edges shown").click()
        expect(page.locator(".edges tbody tr")).to_have_count(2000)
        for step in range(0, 200, 20):
            set_slider(page, step)
        expect(page.locator(".edges tbody tr")).not_to_have_count(2000)
        assert time.perf_counter() - start < 15  # about 2 s on a quiet core; they are shared


def test_hostile_names_do_nothing(shown: Open) -> None:
    name = "</script><img src=x onerror=alert(1)><b>&amp;"
    record = record_of([decision(f"{name}->b", 1.0), decision(f"b->{name}2", 1.0)], name=name)
    with shown(record, record, compare=True) as page:
        expect(page.locator("img, b")).to_have_count(0)
        expect(panel(page).locator("[data-part='subtitle']")).to_contain_text(f"model {name}")
        hover_edge(page, edges(page).first)
        expect(panel(page).locator(".tooltip")).to_contain_text(name)
        page.get_by_text("Table of the edges shown").click()
        expect(page.locator(".edges tbody th").first).to_contain_text("b")
        expect(page.locator("img, b")).to_have_count(0)


@pytest.mark.parametrize("compare", [False, True])
def test_a_narrow_window_does_not_scroll_sideways(shown: Open, compare: bool) -> None:
    with shown(random_record(60), random_record(60, seed=1), compare=compare, width=400) as page:
        page.get_by_text("Table of the edges shown").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        if compare:
            tops = [(panel(page, index).bounding_box() or {"y": 0})["y"] for index in (0, 1)]
            assert tops[1] > tops[0] + 200  # one below the other


@pytest.mark.parametrize("compare", [False, True])
def test_axe_has_nothing_against_it(shown: Open, compare: bool) -> None:
    with shown(random_record(60, signed=True), random_record(60, seed=1), compare=compare) as page:
        page.get_by_text("Table of the edges shown").click()
        page.get_by_label("All nodes").check()
        page.mouse.move(5, 5)
        found = Axe().run(page).response["violations"]
        assert found == [], [
            (each["id"], [n["html"][:120] for n in each["nodes"][:3]]) for each in found
        ]
