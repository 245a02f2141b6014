"""Looks of the methods of a chart."""

from __future__ import annotations

from pahq_plugin.compare.baselines import BASELINES
from pahq_plugin.compare.page.chart import STYLES, style


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(STYLES) == set(BASELINES)
    looks = [(look.color, look.dash, look.marker) for look in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({style(f"x@{place}", place) for place in range(9)}) == 9
