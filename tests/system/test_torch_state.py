"""Random generators are seeded, put back, and shared by threads that want the same draws every time."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader

from pahq_plugin.system.torch_state import random_state_kept, seeded
from tests.helpers.lent import random_states
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


def draw() -> tuple[float, float]:
    return random.random(), torch.rand(1).item()


def drawn_with(seed: int) -> tuple[float, float]:
    with seeded(seed):
        return draw()


def test_blocks_around_each_other() -> None:
    before = random_states()
    with seeded(1):
        first = draw()
        with seeded(2):
            assert draw() == drawn_with(2) != first
        second = draw()
    with seeded(1):
        assert (draw(), draw()) == (first, second)
    assert random_states() == before


def test_the_last_to_leave_puts_back_what_was_there() -> None:
    """As two threads that enter and leave one after the other."""
    before = random_states()
    first, second = seeded(1), seeded(2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert draw() == drawn_with(2), "the second draws on undisturbed"
    second.__exit__(None, None, None)
    assert random_states() == before


def test_what_failed_is_put_back() -> None:
    before = random_states()
    with pytest.raises(KeyboardInterrupt), random_state_kept(), seeded(3):
        draw()
        raise KeyboardInterrupt
    assert random_states() == before


def test_who_draws_alone_is_waited_for() -> None:
    seen: list[tuple[float, float]] = []
    thread = threading.Thread(target=lambda: seen.append(drawn_with(7)))
    with seeded(1, alone=True):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not seen
        assert draw() == drawn_with(1)
    thread.join(60)
    assert seen == [drawn_with(7)]


class Slow(PromptDataLoader):
    """Shuffles; another thread comes in before the order is drawn, if it can."""

    def __iter__(self) -> Iterator[Any]:
        self.entered.set()
        self.other.wait(0.2)
        return super().__iter__()


def test_searches_in_threads_take_the_prompts_of_their_seeds() -> None:
    whole, model, found = loader(prompts=12), small_model(), {}

    def shuffling(mine: threading.Event, other: threading.Event) -> Slow:
        made = Slow(whole.dataset, seq_len=None, diverge_idx=0, batch_size=2, shuffle=True)
        made.entered, made.other = mine, other
        return made

    def search(seed: int, mine: threading.Event, other: threading.Event) -> None:
        own = copy.deepcopy(model)
        result = discover(own, shuffling(mine, other), method="acdc", threshold=0.003, seed=seed)
        found[seed] = [(d.edge.name, d.kept, d.effect) for d in result.decisions]

    before, events = random_states(), (threading.Event(), threading.Event())
    threads = [threading.Thread(target=search, args=(i, events[i], events[1 - i])) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert random_states() == before
    together = dict(found)
    for seed in (0, 1):
        search(seed, *events)
    assert found == together and found[0] != found[1]
