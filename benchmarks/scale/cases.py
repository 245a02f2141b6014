"""The shapes that are measured: one, and others that differ from it along one axis each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.models import Case

PER_NODE = 2.0
"""Edges kept for each node; see `Setting`."""


@dataclass(frozen=True)
class Setting:
    """A shape to measure.

    The threshold is chosen so that about as many edges are kept for each *node* everywhere. An equal
    share of the edges would not compare like with like: edges grow with the square of the nodes, so at
    an equal share every node of a larger graph reads more kept edges, and a change spreads further.

    Attributes:
        axis: what it varies.
        value: of that.
        case: model and prompts.
        per_node: edges kept for each node.
    """

    axis: str
    value: float | str
    case: Case
    per_node: float = PER_NODE


START = 1e-3
"""The first threshold tried; where nothing is looked for, the threshold."""

BASE = Case("4 x 6 x 192", START, layers=4, heads=6, width=192, d_mlp=768, prompts=8, length=16)
SMALL = Case("2 x 2 x 32", START, layers=2, heads=2, width=32, d_mlp=64, prompts=4, length=8)
GATED = replace(BASE, name="5 x 8 x 256 gated", layers=5, heads=8, width=256, d_mlp=896, gated=True)


def settings() -> list[Setting]:
    """All of them; the base again at the end tells whether the machine was the same all along."""
    return [
        Setting("base", "first", BASE),
        *_along(BASE, layers=(2, 8), heads=(3, 12), width=(96, 384), prompts=(2, 32), length=(8, 32)),
        *(Setting("kept", kept, _named(BASE, f"{kept:g} kept"), kept) for kept in (1.0, 4.0)),
        Setting("size", "large", _sized(8, 8, 320)),
        Setting("kind", "gated", GATED),
        Setting("base", "last", _named(BASE, "again")),
    ]  # fmt: skip


def quick_settings() -> list[Setting]:
    """A few tiny ones."""
    return [
        Setting("base", "first", SMALL),
        *_along(SMALL, layers=(1, 3), heads=(4,), length=(4,)),
        Setting("kept", 1.0, _named(SMALL, "1 kept"), 1.0),
        Setting("kind", "gated", replace(SMALL, gated=True, name="2 x 2 x 32 gated")),
    ]


def _along(base: Case, **axes: tuple[int, ...]) -> list[Setting]:
    """The base varied in one value at a time; an MLP stays four times as wide as the model, and heads
    share the width."""
    found = []
    for axis, values in axes.items():
        for value in values:
            case = replace(base, **{axis: value}, name=f"{value} {axis}")
            found.append(Setting(axis, value, replace(case, d_mlp=4 * case.width)))
    return found


def _sized(layers: int, heads: int, width: int) -> Case:
    name = f"{layers} x {heads} x {width}"
    return replace(BASE, layers=layers, heads=heads, width=width, d_mlp=4 * width, name=name)


def _named(case: Case, name: str) -> Case:
    return replace(case, name=f"{case.name}, {name}")
