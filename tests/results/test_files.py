"""Files of results: equal records give equal bytes, and what is written is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pahq_plugin.errors import ResultError
from pahq_plugin.results.files import (
    STATS,
    read_configuration,
    read_record,
    read_stats,
    record_text,
    result_file,
)
from pahq_plugin.results.result import Stats
from tests.helpers.records import acyclic_records, random_record, saved


@given(acyclic_records())
@settings(deadline=None)
def test_a_line_holds_one_decision(record: dict[str, Any]) -> None:
    text = record_text(record)
    assert json.loads(text) == record
    assert text == record_text(dict(reversed(record.items())))
    lines = text.splitlines()
    at = lines.index(' "decisions": [') + 1
    decisions = [json.loads(line.rstrip(",")) for line in lines[at:-2]] if record["decisions"] else []
    assert decisions == record["decisions"]


def test_a_result_is_found_by_its_folder_and_by_its_file(tmp_path: Path) -> None:
    record = random_record(5)
    folder = saved(record, tmp_path / "r")
    assert result_file(folder) == result_file(folder / "result.json") == folder / "result.json"
    assert read_record(result_file(str(folder))) == record


def test_a_folder_without_costs_has_none(tmp_path: Path) -> None:
    assert read_stats(tmp_path) == {} and read_configuration(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"configuration": 3}'])
def test_a_damaged_record_of_the_run_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultError, match=r"run\.json"):
        read_configuration(tmp_path)


def test_every_cost_has_a_type() -> None:
    assert vars(Stats()).keys() == STATS.keys()
    assert all(isinstance(value, STATS[name]) for name, value in vars(Stats()).items())
