"""Graphviz files, read back by a small reader of the DOT language's strings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from pahq_plugin.labels import ends
from pahq_plugin.results.drawing.dot import circuit_dot, quoted
from tests.helpers.records import acyclic_records, decision, random_record, record_of

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|[{}\[\];,=]|#?[\w.+-]+)', re.DOTALL)
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n", "\\r": "\r"}


def tokens(text: str) -> list[str]:
    """The text as tokens of the DOT language; fails on anything else."""
    found, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        assert match, text[place : place + 40]
        found.append(match[1])
        place = match.end()
    return found


def shown(string: str) -> str:
    """What Graphviz shows for a label."""
    plain = re.sub(r"\\.", lambda match: ESCAPES[match[0]], string[1:-1])
    return plain.replace("&amp;", "&")


def edges(text: str) -> list[tuple[str, str]]:
    found = tokens(text)
    arrows = [place for place, token in enumerate(found) if token == "->"]
    return [(shown(found[place - 1]), shown(found[place + 1])) for place in arrows]


def test_a_small_circuit_in_full() -> None:
    record = record_of([
        decision("A0.0->MLP 0", 0.1),
        decision("Resid Start->A0.0.Q", -1.0, seq_idx=2),
        decision("MLP 0->Resid End", 0.5, kept=False),
    ], scored=True)  # fmt: skip
    head, mlp = 'style="rounded,filled", fillcolor="#ffffff"', 'style=filled, fillcolor="#eceef2"'
    assert circuit_dot(record).splitlines() == [
        "digraph circuit {",
        '  graph [rankdir=BT, label="2 of 3 edges kept by eap, resample ablation, '
        'model tiny", labelloc=b];',
        '  node [fontname="Helvetica", color="#4a5160"];',
        '  edge [fontname="Helvetica", fontsize=9];',
        '  { rank=same; "Resid Start" [label="Resid Start", shape=invhouse, '
        'style=filled, fillcolor="#ffffff"]; }',
        f'  {{ rank=same; "A0.0" [label="A0.0", shape=box, {head}]; }}',
        f'  {{ rank=same; "MLP 0" [label="MLP 0", shape=box, {mlp}]; }}',
        '  "Resid Start" -> "A0.0" [label="Q @2", tooltip="Resid Start->A0.0.Q @2: -1", '
        'color="#572706", penwidth=5.5, style=dashed];',
        '  "A0.0" -> "MLP 0" [label="", tooltip="A0.0->MLP 0: 0.1", color="#7fb2d9", penwidth=0.9];',
        "}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a"b', r'"a\"b"'),
        ("a\\", r'"a\\"'),
        ("\\N", r'"\\N"'),
        ("a\nb\r", r'"a\nb\r"'),
        ("&lt;", '"&amp;lt;"'),
        ("a\0b", '"a\ufffdb"'),
    ],
)
def test_quoted(text: str, expected: str) -> None:
    assert quoted(text) == expected


def test_equal_records_give_equal_text_whatever_their_order() -> None:
    record = random_record(200, signed=True)
    assert circuit_dot(record) == circuit_dot(record | {"decisions": record["decisions"][::-1]})


def test_an_empty_circuit_is_a_graph() -> None:
    assert edges(circuit_dot(record_of([decision("a->b", 0.0, kept=False)]))) == []


@given(acyclic_records())
def test_any_names_come_back(record: dict[str, Any]) -> None:
    kept = [ends(entry["edge"])[:2] for entry in record["decisions"] if entry["kept"]]
    expected = [tuple(name.replace("\0", "\ufffd") for name in pair) for pair in kept]
    assert sorted(edges(circuit_dot(record))) == sorted(expected)
