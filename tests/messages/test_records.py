"""Messages about saved results and JSON files whose content is not what it should be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.card import card_text, write_card
from pahq_plugin.results.files import read_record, read_stats, result_file
from pahq_plugin.system.files import parse_json
from tests.helpers.records import decision, random_record, record_of, saved
from tests.helpers.refused import refused

Change = Callable[[dict[str, Any]], object]

RECORDS: list[tuple[Change, str]] = [
    (lambda r: r.pop("schema"), "is not a result of this version; expected schema 'pahq-discovery/1'"),
    (lambda r: r.pop("model"), "lacks model, settings or decisions"),
    (lambda r: r["model"].pop("name"), "model must hold a name, a digest and a number of edges"),
    (lambda r: r["settings"].pop("seed"), "a field of settings is missing or of the wrong type"),
    (
        lambda r: r["settings"].update(precision={"low": 3}),
        "settings: precision must name the formats low and mlp",
    ),
    (lambda r: r["settings"].update(threshold=-1.0), "settings: threshold -1.0 must be above 0"),
    (lambda r: r["decisions"][0].pop("kept"), "decision 0 is damaged: {"),
    (lambda r: r["decisions"].pop(), "holds 1 decisions on 1 edges; the model has 2, each decided once"),
    (lambda r: r["decisions"][0].update(kept=False), "A->B is marked removed, but its effect is 1"),
]


@pytest.mark.parametrize(("change", "message"), RECORDS, ids=[message for _, message in RECORDS])
def test_records_of_results(change: Change, message: str, tmp_path: Path) -> None:
    record = record_of([decision("A->B", 1.0), decision("B->C", 0.5)])
    file = saved(record, tmp_path / "good") / "result.json"
    assert read_record(file) == record
    change(record)
    with refused(ResultError, message):
        read_record(saved(record, tmp_path / "bad") / "result.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice in one object"),
        ("NaN", "NaN is not a finite number"),
        ("1" * 5000, "an integer of 5000 digits is too large"),
    ],
)
def test_values_of_json(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)
    (tmp_path / "result.json").write_text(content)
    with refused(ResultError, "is not readable JSON: ", message):
        read_record(tmp_path / "result.json")


def test_places_without_a_result(tmp_path: Path) -> None:
    with refused(ResultError, f"no result at {tmp_path}; expected a folder with result.json"):
        result_file(tmp_path)
    with refused(ResultError, f"no result in {tmp_path}; a card goes into a folder with result.json"):
        write_card(tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    with refused(
        ResultError, f"the run in {tmp_path} has not finished; run its command again to continue"
    ):
        result_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "run.json is damaged: Expecting value"),
        ('{"stats": {}}', "run.json is damaged: stats must hold "),
    ],
)
def test_what_a_run_cost(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with refused(ResultError, message):
        read_stats(tmp_path)


def test_costs_below_nothing(tmp_path: Path) -> None:
    from dataclasses import asdict

    from pahq_plugin.results.result import Stats

    stats = asdict(Stats())
    (tmp_path / "run.json").write_text(json.dumps({"stats": stats}))
    assert read_stats(tmp_path) == stats
    (tmp_path / "run.json").write_text(json.dumps({"stats": stats | {"seconds": -1.0}}))
    with refused(ResultError, "is damaged: seconds must hold numbers of at least 0"):
        read_stats(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"license": "No Such"}, "license 'No Such' must be a name that the hub knows, such as mit"),
        ({"base_model": "a/b/c"}, "base_model 'a/b/c' must be a model name on the hub: owner/name"),
        ({"measures": {"loss": math.nan}}, "measure 'loss' is nan; expected a name and a number"),
        ({"measures": {3: 0.5}}, "measure 3 is 0.5; expected a name and a number"),
        ({"measures": {"loss": 10**400}}, "; expected a name and a number"),
    ],
)
def test_cards(arguments: dict[str, Any], message: str) -> None:
    with refused(ConfigError, message):
        card_text(random_record(3), **{"measures": {}, **arguments})
