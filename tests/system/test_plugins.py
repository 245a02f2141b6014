"""References to attributes of modules, and entry points of packages."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from pahq_plugin.errors import ConfigError
from pahq_plugin.system.plugins import ENGINES, is_reference, load, referred


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json:JSONDecoder", True),
        ("xml.dom.minidom:parse", True),
        ("acdc", False),
        ("json:", False),
        (":JSONDecoder", False),
        ("json:a.b", False),
        ("a-b:c", False),
        ("json:JSONDecoder\n", False),
        (None, False),
    ],
)
def test_what_is_a_reference(name: Any, expected: bool) -> None:
    assert is_reference(name) is expected


def test_a_reference_leads_to_its_attribute() -> None:
    assert referred("json:JSONDecoder", type) is json.JSONDecoder


@pytest.mark.parametrize("name", ["no_such_module:x", "json:no_such_name", "json:JSONDecoder"])
def test_references_that_lead_nowhere_or_to_another_class_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        referred(name, dict)


def test_an_entry_point_leads_to_its_function() -> None:
    assert load(EntryPoint("loads", "json:loads", ENGINES)) is json.loads
