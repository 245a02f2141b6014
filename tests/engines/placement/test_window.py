"""The window of what comes and goes, against a plain list of what was used last."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pahq_plugin.engines.placement.window import Copied, Lent, Shelf, Spilled, Window


@dataclass(eq=False)
class Thing:
    nbytes: int
    log: list[str] = field(default_factory=list)
    here: bool = False

    def bring(self) -> None:
        assert not self.here
        self.here = True

    def stow(self) -> None:
        assert self.here
        self.here = False


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    room=st.integers(0, 120),
    uses=st.lists(st.integers(0, 7), max_size=60),
)
def test_the_least_recently_used_goes_first(sizes: list[int], room: int, uses: list[int]) -> None:
    things, window = [Thing(size) for size in sizes], Window(room)
    recent: list[Thing] = []  # the last one was used last
    for use in uses:
        thing = things[use % len(things)]
        window.use(thing)
        if thing in recent:
            recent.remove(thing)
        else:
            while recent and sum(t.nbytes for t in recent) + thing.nbytes > room:
                recent.pop(0)
        recent.append(thing)
        assert [t for t in things if t.here] == [t for t in things if t in recent]
        assert thing.here
    window.clear()
    assert not any(t.here for t in things)


def test_what_was_brought_is_counted() -> None:
    window, first, second = Window(10), Thing(8), Thing(8)
    for thing in (first, first, second, first):
        window.use(thing)
    assert window.brought == 24


def test_lent_parameters_are_empty_while_they_are_away() -> None:
    parameter = nn.Parameter(torch.randn(3, 4), requires_grad=False)
    values, address = parameter.detach().clone(), parameter.data_ptr()
    item = Lent([parameter], torch.device("cpu"))
    assert parameter.numel() == 0 and item.nbytes == values.nbytes
    item.bring()
    assert torch.equal(parameter, values)
    item.stow()
    item.give_back()
    assert torch.equal(parameter, values) and parameter.data_ptr() == address


def test_caches_keep_what_is_written_to_them(tmp_path) -> None:
    for put in (Copied, lambda x: Spilled(x, tmp_path)):
        window = Window(100)
        values = [torch.randn(2, 5) for _ in range(6)]
        shelf = Shelf(window, put, (x.clone() for x in values))
        shelf.append(torch.zeros(2, 5))
        values.append(torch.zeros(2, 5))
        assert len(shelf) == 7 and shelf.nbytes == 7 * 40
        for i in (0, 3, 6, 1, 0, 5, 2):
            shelf[i].add_(i + 1.0)
            values[i] += i + 1.0
        assert all(torch.equal(a, b) for a, b in zip(shelf, values, strict=True))
