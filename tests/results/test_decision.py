"""Decisions as files hold them, and the strongest of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from pahq_plugin.results.decision import Decision, SavedEdge, entry, label, saved_decisions, strongest
from tests.helpers.records import acyclic_records


def decided(name: str, effect: float, kept: bool = True, seq_idx: int | None = None) -> Decision:
    return Decision(SavedEdge(name, seq_idx), effect, kept, exact=True)  # type: ignore[arg-type]


@given(acyclic_records())
@settings(deadline=None)
def test_what_is_read_is_what_was_written(record: dict[str, Any]) -> None:
    assert [entry(decision) for decision in saved_decisions(record)] == record["decisions"]


def test_the_strongest_by_magnitude_and_then_by_name() -> None:
    decisions = [
        decided("a->b", 0.1),
        decided("b->c", -0.5),
        decided("c->d", 9.0, kept=False),
        decided("d->e", 0.5),
        decided("a->c", 0.1),
    ]
    assert [d.edge.name for d in strongest(decisions)] == ["b->c", "d->e", "a->b", "a->c"]


def test_labels_have_the_position_and_can_be_printed() -> None:
    assert label(decided("a->b", 1.0)) == "a->b"
    assert label(decided("a->b", 1.0, seq_idx=3)) == "a->b @3"
    assert label(decided("a\n->b", 1.0)) == r"a\n->b"
