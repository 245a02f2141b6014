"""What the stand-ins of a lent model share, and when the unembedding is high."""

from __future__ import annotations

import pytest
import torch

from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import get_format
from pahq_plugin.precision.policy import EVERYTHING, NOTHING, HighParts
from pahq_plugin.precision.shared import WEIGHT, investigation, is_high

CPU = torch.device("cpu")
LOW = PrecisionConfig(low="int8", parts=("unembed",))


@pytest.mark.parametrize(
    ("precision", "high", "expected"),
    [
        (LOW, NOTHING, False),
        (LOW, HighParts(heads=frozenset({(0, 1)})), False),
        (LOW, HighParts(unembed=True), True),
        (LOW, EVERYTHING, True),
        (PrecisionConfig(low="int8", parts=("qkv",)), NOTHING, True),
    ],
)
def test_the_unembedding_is_high_by_its_format_or_its_edge(
    precision: PrecisionConfig, high: HighParts, expected: bool
) -> None:
    shared = investigation(precision, CPU)
    assert shared.high == NOTHING
    shared.high = high
    assert is_high(shared) == expected


def test_copies_are_in_the_format_for_weights() -> None:
    """With ``weights="int4"`` activations of 8 bits meet weights of 4; a copy is made once."""
    shared = investigation(PrecisionConfig(low="int8", mlp="int8", weights="int4"), CPU)
    master = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4), requires_grad=False)
    copy = shared.low_copy(WEIGHT, master, get_format("int8"))
    assert int(copy.codes.abs().max()) == 7
    assert shared.low_copy(WEIGHT, master, get_format("int8")) is copy
