"""Every message of an error is named by a test that provokes it."""

from __future__ import annotations

import re

import pytest

from tests.docs.markdown import REPOSITORY
from tests.docs.messages import GAP, Message, messages
from tests.docs.provoked import is_named, literals, literals_of_tests, runs_of, unnamed

WITHOUT_WORDS: dict[tuple[str, str], str] = {
    ("pahq_plugin/compare/plan.py", f"{GAP}: {GAP}"): "test_plans.py::test_files_of_plans",
    ("pahq_plugin/engine/host.py", f"at edge {GAP}: {GAP}"): "test_searches.py::test_a_loss_at_an_edge",
    (
        "pahq_plugin/engine/incremental.py",
        f"at edge {GAP}: {GAP}",
    ): "test_searches.py::test_a_loss_at_an_edge",
    (
        "exporters/pahq_exporters/engine.py",
        f"at edge {GAP}: {GAP}",
    ): "test_searches.py::test_a_loss_at_an_edge",
    (
        "pahq_plugin/problems/prompt_files.py",
        f"prompt {GAP}: {GAP}",
    ): "test_prompts.py::test_prompts_of_a_file",
    ("exporters/pahq_exporters/description.py", GAP): "test_graphs.py::test_descriptions",
    ("exporters/pahq_exporters/heads.py", GAP): "test_graphs.py::test_heads_that_cannot_be_written",
    ("exporters/pahq_exporters/heads.py", f"no {GAP}"): "test_graphs.py::test_files_of_heads",
    (
        "exporters/pahq_exporters/heads.py",
        f"{GAP} is at {GAP} to {GAP} of {GAP} bytes",
    ): "test_graphs.py::test_files_of_heads",
}
"""Messages that pass another one on and have no words of their own to tell them by, and the tests in
``tests/messages`` that provoke them."""


@pytest.fixture(scope="module")
def left() -> list[Message]:
    """The messages that no literal of a test is a part of."""
    return unnamed(messages(), literals_of_tests())


def test_a_test_names_every_message(left: list[Message]) -> None:
    missing = [
        message
        for message in left
        if (message.where.rpartition(":")[0], message.text) not in WITHOUT_WORDS
    ]
    assert not missing, "\n".join(f"{m.where} {m.kind}: {m.text}" for m in missing)


def test_a_new_message_is_missed() -> None:
    new = Message("", "ConfigError", f"the colour {GAP} of a circuit is out of fashion")
    assert unnamed([new], literals_of_tests()) == [new]


def test_those_without_words_are_needed_and_have_their_tests(left: list[Message]) -> None:
    assert {(m.where.rpartition(":")[0], m.text) for m in left} >= WITHOUT_WORDS.keys()
    for place in WITHOUT_WORDS.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (REPOSITORY / "tests/messages" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("literal", "named"),
    [
        ("unknown format 'fp7'; known", True),
        (f"unknown format{GAP}known: fp32", True),
        ("an unknown format", False),
        ("unknown formats", False),
        ("unknown", False),
        ("'fp7'; known", False),
    ],
)
def test_a_literal_names_a_message_that_it_is_a_part_of(literal: str, named: bool) -> None:
    assert is_named(f"unknown format {GAP}; known: {GAP}", runs_of([literal])) == named


def test_literals_are_told_from_docstrings_and_have_gaps() -> None:
    source = '''"""Told."""
def f():
    """Told, too."""
    g(f"edge {name!r} is gone", r"a \\(b\\).*c|d", "two\\nlines")
'''
    found = set(literals(source))
    assert {f"edge {GAP} is gone", f"a (b){GAP}c", "d", "two lines"} <= found
    assert not any("Told" in literal for literal in found)
    assert not any(re.search("edge $", literal) for literal in found)
