"""The data of a picture, and the page around it as text; `test_viewer_in_browser` opens it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings

from pahq_plugin.results.decision import label, saved_decisions
from pahq_plugin.results.drawing.circuit_graph import circuit_data, graph_page, viewer, viewer_assets
from pahq_plugin.results.drawing.page import json_text
from pahq_plugin.results.drawing.scale import EffectScale
from tests.helpers.records import acyclic_records, decision, random_record, record_of

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028\u2029\ud800"


def data_of(page: str) -> dict[str, Any]:
    """What a page's script would read."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_edges_between_two_nodes_are_one_with_parts() -> None:
    record = record_of([
        decision("A0.0->A1.0.K", 0.1),
        decision("A0.0->A1.0.Q", 0.5, exact=False),
        decision("A0.0->A1.0.V", 0.001, kept=False),
        decision("A0.0->MLP 0", 0.2),
    ])  # fmt: skip
    data = circuit_data(record)
    scale = EffectScale([0.1, 0.5, 0.2])
    look = {
        e: {"effect": e, "colour": scale.colour(e), "width": scale.width(e)} for e in (0.1, 0.5, 0.2)
    }
    assert data["edges"] == [
        {"source": "A0.0", "destination": "A1.0", "parts": [
            {"label": "A0.0->A1.0.Q", "slot": "Q", "position": None, "exact": False} | look[0.5],
            {"label": "A0.0->A1.0.K", "slot": "K", "position": None, "exact": True} | look[0.1],
        ]},
        {"source": "A0.0", "destination": "MLP 0", "parts": [
            {"label": "A0.0->MLP 0", "slot": None, "position": None, "exact": True} | look[0.2],
        ]},
    ]  # fmt: skip


def test_positions_are_parts_with_a_label_of_their_own() -> None:
    data = circuit_data(record_of([decision("a->b", 1.0, seq_idx=0), decision("a->b", 2.0, seq_idx=3)]))
    (edge,) = data["edges"]
    assert [(part["label"], part["position"]) for part in edge["parts"]] == [
        ("a->b @3", 3),
        ("a->b @0", 0),
    ]


def test_removed_edges_leave_their_nodes() -> None:
    data = circuit_data(record_of([decision("a->b", 0.0, kept=False)]))
    assert [node["name"] for node in data["nodes"]] == ["a", "b"] and data["edges"] == []


def test_names_and_words() -> None:
    searched, scored = (
        record_of([decision("a->b", 1.0)]),
        record_of([decision("a->b", -1.0)], scored=True),
    )
    data = circuit_data(searched)
    assert data["name"] == "acdc, threshold 0.01" and data["measure"] == "effect"
    assert data["subtitle"].startswith("1 of 1 edges kept by acdc, threshold 0.01, kl_div")
    assert circuit_data(searched, "mine")["name"] == "mine"
    data = circuit_data(scored)
    assert data["name"] == "eap, 1 edges" and data["measure"] == "score"
    assert [sample["effect"] for sample in data["negative"]] == [-1.0]
    assert circuit_data(searched)["negative"] == []


def test_equal_records_give_equal_pages_whatever_their_order() -> None:
    record = random_record(50)
    turned = record | {"decisions": record["decisions"][::-1]}
    assert graph_page([circuit_data(record)], "t") == graph_page([circuit_data(turned)], "t")


class Markup(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_refers_to_nothing_outside() -> None:
    page = graph_page([circuit_data(random_record(5))], "Circuit")
    for tag, attributes in Markup(page).tags:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed")
        assert not {"src", "href", "srcset", "style"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes)
    assert re.findall(r"https?://[^\"' ]+", page) == [
        "http://www.w3.org/2000/svg"
    ]  # a name, not a place
    assert "url(" not in page and "@import" not in page
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in page
    policy = next(a["content"] for t, a in Markup(page).tags if "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none';") and "unsafe-eval" not in policy


def test_hostile_names_stay_text() -> None:
    record = record_of([decision(f"{HOSTILE}->b", 1.0)], name=HOSTILE)
    plain = record_of([decision("a->b", 1.0)])
    hostile, harmless = (graph_page([circuit_data(r, r["model"]["name"])], r["model"]["name"])
                         for r in (record, plain))  # fmt: skip
    assert [tag for tag, _ in Markup(hostile).tags] == [tag for tag, _ in Markup(harmless).tags]
    assert data_of(hostile)["circuits"][0]["name"] == HOSTILE


def test_several_viewers_have_ids_of_their_own() -> None:
    circuits = [circuit_data(random_record(5))]
    css, js = viewer_assets()
    assert css and js
    tags = Markup(viewer(circuits, "one") + viewer(circuits, "two")).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    pointed = {a[name] for _, a in tags for name in ("for", "aria-describedby") if name in a}
    assert pointed <= set(ids)


@given(acyclic_records())
@settings(deadline=None)
def test_every_kept_edge_is_in_the_data_once(record: dict[str, Any]) -> None:
    data = circuit_data(record)
    kept = {label(d): d.effect for d in saved_decisions(record) if d.kept}
    parts = [part for edge in data["edges"] for part in edge["parts"]]
    assert {part["label"]: part["effect"] for part in parts} == kept and len(parts) == len(kept)
    text = json_text(data)
    assert json.loads(text) == data and not set("<>&\u2028\u2029") & set(text)
