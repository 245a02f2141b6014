"""Arrays from users: tokens, source outputs and masks that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pahq_exporters import OnnxPatcher
from pahq_plugin.errors import ConfigError, PromptError
from tests.helpers.patchers import CLEAN, CORRUPT, EDGE, Graphs
from tests.helpers.refused import refused
from tests.helpers.small import VOCABULARY

TOKENS: dict[str, tuple[Any, str]] = {
    "three axes": (CLEAN[None], "[batch, pos]"),
    "no prompt": (CLEAN[:0], "[batch, pos]"),
    "no token": (CLEAN[:, :0], "[batch, pos]"),
    "fractions": (CLEAN * 1.0, "float64"),
    "truth values": (CLEAN > 3, "bool"),
    "text": ("Mary", "[batch, pos]"),
    "words": ([["a", "b"]], "[batch, pos]"),
    "objects": ([[object()]], "object"),
    "an object": ({}, "object"),
    "ragged": ([[1, 2], [1]], "array"),
    "vocabulary": (CLEAN + VOCABULARY, f"vocabulary of {VOCABULARY}"),
    "negative": (CLEAN - VOCABULARY, "id -"),
    "64 bits": ([[2**63]], "9223372036854775808"),
    "more than 64 bits": ([[2**70]], "object"),
    "too long": (np.zeros((2, 17), int), "17 tokens"),
    "gradients": (torch.zeros(2, 2, requires_grad=True), "detach"),
    "half precision": (torch.zeros(2, 2, dtype=torch.bfloat16), "BFloat16"),
}


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("kind", ["dense", "sweep"])
def test_tokens_that_do_not_fit(case: str, kind: str, graphs: Graphs) -> None:
    bad, word = TOKENS[case]
    patcher: OnnxPatcher = getattr(graphs, kind)
    with refused(PromptError, "tokens", word):
        patcher.run(bad, CORRUPT, edges=[EDGE])
    with refused(PromptError, "tokens", word):
        patcher.sources(bad)
    with refused(PromptError, "corrupt"):
        patcher.run(CLEAN, bad, edges=[EDGE])


CORRUPTIONS: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda x: np.where(x == x.max(), np.nan, x),
    "infinity": lambda x: np.where(x == x.max(), np.inf, x),
    "too large": lambda x: x.astype(np.float64) * 1e300,
    "a source less": lambda x: x[1:],
    "a prompt less": lambda x: x[:, 1:],
    "a position less": lambda x: x[:, :, 1:],
    "narrow": lambda x: x[..., 1:],
    "flat": lambda x: x.reshape(len(x), -1, x.shape[-1]),
    "integers": lambda x: x.astype(int),
    "complex": lambda x: x * 1j,
    "half precision": lambda x: torch.tensor(x).bfloat16(),
    "gradients": lambda x: torch.tensor(x, requires_grad=True),
    "ragged": lambda x: [[[[1.0], [1.0, 2.0]]]],
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corrupt_outputs_that_do_not_fit(case: str, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        right = patcher.sources(CORRUPT)
        assert np.isfinite(patcher.run(CLEAN, right.astype(np.float64), edges=[EDGE])).all()
        with refused(PromptError, "corrupt"):
            patcher.run(CLEAN, CORRUPTIONS[case](right), edges=[EDGE])


MASKS: dict[str, Callable[[Any], Any]] = {
    "a row": lambda mask: mask[0],
    "turned": lambda mask: mask.T,
    "four axes": lambda mask: mask[None, None],
    "none": lambda mask: mask[None][:0],
    "NaN": lambda mask: mask * np.nan,
    "too large": lambda mask: mask.astype(float) * 1e300,
    "complex": lambda mask: mask * 1j,
    "objects": lambda mask: mask.astype(object),
    "text": lambda mask: EDGE,
    "a number": lambda mask: 1,
    "ragged": lambda mask: [[1, 2], [1]],
    "gradients": lambda mask: torch.tensor(mask, requires_grad=True),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_that_does_not_fit(case: str, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.by_position):
        name = EDGE if patcher is graphs.dense else f"{EDGE} @2"
        with refused(ConfigError, "mask"):
            patcher.run(CLEAN, CORRUPT, mask=MASKS[case](patcher.mask([name])))
