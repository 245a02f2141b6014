"""What is remembered, and what goes, when not everything fits."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_plugin.engines.incremental.memo import Memo


@dataclass
class Item:
    nbytes: int


def test_items_are_found_until_dropped() -> None:
    memo: Memo[Item] = Memo(10)
    item = Item(4)
    memo.put("a", item)
    assert memo.get("a") is item and memo.get("b") is None
    assert memo.nbytes == 4
    memo.drop("a")
    assert memo.get("a") is None and memo.nbytes == 0


def test_a_newer_item_takes_the_place_of_the_older() -> None:
    memo: Memo[Item] = Memo(10)
    memo.put("a", Item(4))
    newer = Item(7)
    memo.put("a", newer)
    assert memo.get("a") is newer and memo.nbytes == 7


def test_what_was_not_used_of_late_goes_first() -> None:
    memo: Memo[Item] = Memo(10)
    for key in "abc":
        memo.put(key, Item(3))
    memo.next_round()
    memo.get("a")
    memo.next_round()
    memo.put("d", Item(5))
    assert memo.get("b") is None and memo.get("c") is None
    assert memo.get("a") is not None and memo.get("d") is not None
    assert memo.nbytes == 8


def test_items_asked_for_in_turn_do_not_push_each_other_out() -> None:
    """Three items of which two fit: a least-recently-used memo would never find any again."""
    memo: Memo[Item] = Memo(8)
    found = 0
    for _ in range(5):
        memo.next_round()
        for key in "abc":
            if memo.get(key) is None:
                memo.put(key, Item(4))
            else:
                found += 1
    assert found == 8


def test_an_item_larger_than_the_budget_is_not_kept() -> None:
    memo: Memo[Item] = Memo(3)
    memo.put("a", Item(2))
    memo.put("b", Item(4))
    assert memo.get("b") is None
    memo.next_round()
    memo.next_round()
    memo.put("b", Item(4))
    assert memo.get("b") is None and memo.nbytes <= 3
