"""Definitions of measures: of every column of the tables, and in the documentation too."""

from __future__ import annotations

from pathlib import Path

from pahq_plugin.compare.page.definitions import DEFINITIONS
from pahq_plugin.compare.page.page import Report
from pahq_plugin.compare.page.write import shown_tables

PLAIN = {"method", "problems", "edges", "seconds", "MiB"}
"""Columns that need no definition; the caption of the tables of precision defines theirs."""


def test_every_measure_of_the_tables_is_defined(report: Report) -> None:
    defined = " ".join(f"{name} {meaning}" for name, meaning, _ in DEFINITIONS)
    tables = [table for table in shown_tables(report) if not table.ident.startswith("precision")]
    columns = {column.split(",")[0] for table in tables for column in table.columns}
    assert columns > PLAIN
    assert {column for column in columns - PLAIN if column not in defined} == set()


def test_every_definition_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text(encoding="utf-8")
    names = [name for names, _, _ in DEFINITIONS for name in names.split(" and ")]
    assert [name for name in names if name not in page] == []
