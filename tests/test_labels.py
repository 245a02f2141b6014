"""Nodes behind edge labels."""

from __future__ import annotations

import pytest

from pahq_plugin.labels import block_of, ends, kind_of


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("A0.1->A1.3.Q", ("A0.1", "A1.3", "Q")),
        ("A0.1->A1.3.V", ("A0.1", "A1.3", "V")),
        ("A0.1->A1.3", ("A0.1", "A1.3", None)),
        ("MLP 2->Resid End", ("MLP 2", "Resid End", None)),
        ("Resid Start->A10.11.K", ("Resid Start", "A10.11", "K")),
        ("B0.1->B1.0", ("B0.1", "B1.0", None)),
        ("x->y.Q", ("x", "y.Q", None)),  # only heads have slots
    ],
)
def test_ends(label: str, expected: tuple[str, str, str | None]) -> None:
    assert ends(label) == expected


@pytest.mark.parametrize(
    ("name", "kind", "block"),
    [
        ("A3.7", "head", 3),
        ("MLP 11", "mlp", 11),
        ("Resid Start", "input", None),
        ("Resid End", "output", None),
        ("B0.1", "other", None),
        ("A3", "other", None),
        ("MLP x", "other", None),
    ],
)
def test_kinds(name: str, kind: str, block: int | None) -> None:
    assert kind_of(name) == kind and block_of(name) == block
