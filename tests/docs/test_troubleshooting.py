"""The page on troubleshooting explains every message that the sources can raise, and no other."""

from __future__ import annotations

import inspect

from pahq_plugin import errors
from tests.docs.markdown import DOCS
from tests.docs.messages import (
    FEWEST_LETTERS,
    GAP,
    Message,
    collect,
    entries,
    explains,
    is_told_elsewhere,
    messages,
)

PAGE = DOCS / "troubleshooting.md"


def test_every_message_has_an_entry() -> None:
    known = entries(PAGE)
    missing = [
        message
        for message in messages()
        if not is_told_elsewhere(message) and not any(explains(entry, message) for entry in known)
    ]
    assert not missing, "\n".join(f"{m.where} {m.kind}: {m.text}" for m in missing)


def test_messages_without_words_pass_on_those_of_others() -> None:
    """A message that is a variable would have none to look up: write it where it is raised."""
    wordless = {message.text for message in messages() if is_told_elsewhere(message)}
    assert wordless <= {
        GAP,
        "…: …",
        "at edge …: …",
        "prompt …: …",
        "no …",
        "it has no …",
        "… has no …; …",
    }


def test_every_entry_is_of_a_message() -> None:
    found = messages()
    stale = [entry for entry in entries(PAGE) if not any(explains(entry, m) for m in found)]
    assert not stale, "\n".join(stale)


def test_entries_say_enough_to_be_found() -> None:
    for entry in entries(PAGE):
        assert sum(c.isalpha() for c in entry.replace(GAP, "")) >= FEWEST_LETTERS, entry


def test_no_entry_stands_twice() -> None:
    known = entries(PAGE)
    assert sorted(set(known)) == sorted(known)


def test_every_class_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.PahqError):
            assert f"`{name}`" in text, name


def test_messages_are_collected_with_gaps() -> None:
    source = (
        'raise ConfigError(f"{flag}={value!r} must be {low} or " f"{high}")\n'
        'failure = errors.GraphError("no edge " + name if name else "none")\n'
        'raise ModelError\nValueError(f"{a}: {b}")\n'
    )
    assert list(collect(source, "x.py")) == [
        Message("x.py:1", "ConfigError", "…=… must be … or …"),
        Message("x.py:2", "GraphError", "no edge …"),
        Message("x.py:2", "GraphError", "none"),
        Message("x.py:4", "ValueError", "…: …"),
    ]
    assert explains("…=… must be …", Message("", "", "…=… must be … or …"))
    assert not explains("no edge in", Message("", "", "no edge …"))
