"""Tables as people read them."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from pahq_plugin.compare.page.readable import Table, decimals, interval, number


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
