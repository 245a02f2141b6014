"""Pieces of work in processes of their own: how they can end."""

from __future__ import annotations

import sys
from functools import partial

from pahq_plugin.compare.run import Outcome, Work, run_work
from pahq_plugin.errors import ConfigError


def refuse_at_length() -> None:
    raise ConfigError("no\n" + "y" * 10**6)


def test_long_messages_do_not_block() -> None:
    """A pipe holds 64 KiB, and nobody reads before the process has ended."""
    outcome = Outcome()
    run_work("", [Work("long", refuse_at_length)], 1, outcome, False)
    assert outcome.refused["long"].startswith("no\\nyyy") and outcome.failed == {}


def test_a_process_that_just_ends_has_failed() -> None:
    outcome = Outcome()
    run_work("", [Work("ends", partial(sys.exit, 3))], 1, outcome, False)
    assert outcome.refused == {} and "exit code 3" in outcome.failed["ends"]
