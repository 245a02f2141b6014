"""Messages of errors are one line of printable text, and not longer than a screen."""

from __future__ import annotations

import pytest

from pahq_plugin import errors
from pahq_plugin.errors import LONGEST_MESSAGE, LONGEST_REASON, PahqError, counted, one_line, printable

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PahqError)
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("W_Q – größer", "W_Q – größer"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),
        ("\u202e", r"\u202e"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert str(PahqError(text)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_message_keeps_its_beginning_and_end(kind: type[PahqError]) -> None:
    message = str(kind("begin " + "x" * 10**5 + " end"))
    assert message.startswith("begin xxx") and message.endswith("xxx end") and " ... " in message
    assert LONGEST_MESSAGE <= len(message) <= LONGEST_MESSAGE + len(" ... ")
    assert str(kind("x" * LONGEST_MESSAGE)) == "x" * LONGEST_MESSAGE


def test_numbers_have_their_noun() -> None:
    assert [counted(n, "edge") for n in (0, 1, 2, 1234)] == [
        "0 edges",
        "1 edge",
        "2 edges",
        "1,234 edges",
    ]
    assert counted(2, "batch", "batches") == "2 batches" and counted(1, "batch", "batches") == "1 batch"


def test_reasons_of_others_become_one_short_line() -> None:
    assert one_line(ValueError("a\n  b\t c")) == "a b c"
    assert len(one_line("x " * 10**4)) <= LONGEST_REASON
