"""Damaged result files and results of other models are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import PahqError, ResultError
from tests.helpers.broken import DAMAGED
from tests.helpers.lent import Snapshot
from tests.helpers.refused import refused_untouched
from tests.helpers.small import patchable, small_model, transformer


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_result_is_refused(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    file = found.save(tmp_path / "result") / "result.json"
    file.write_text(DAMAGED[damage](file.read_text()))
    before = Snapshot(found.model)
    with pytest.raises(PahqError) as caught:
        pahq.Discovery.load(tmp_path / "result", found.model)
    assert len(str(caught.value).splitlines()) == 1
    before.assert_unchanged()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: small_model(seed=1), id="weights"),
        pytest.param(lambda: small_model(n_layers=3), id="depth"),
        pytest.param(lambda: patchable(transformer(), seq_len=6), id="positions"),
        pytest.param(lambda: small_model(dtype=torch.float64), id="dtype"),
    ],
)
def test_a_result_of_another_model_is_refused(
    found: pahq.Discovery, other: Callable[[], PatchableModel], tmp_path: Path
) -> None:
    found.save(tmp_path)
    model = other()
    words = ("another model",)
    refused_untouched(ResultError, words, model, lambda: pahq.Discovery.load(tmp_path, model))
