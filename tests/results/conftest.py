"""Results of small searches, found once."""

from __future__ import annotations

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.results.result import Discovery
from tests.helpers.small import patchable, small_model, transformer
from tests.results.shown import search


@pytest.fixture(scope="session")
def model() -> PatchableModel:
    return small_model()


@pytest.fixture(scope="session")
def found(model: PatchableModel) -> Discovery:
    return search(model, 0.01)


@pytest.fixture(scope="session")
def positional() -> Discovery:
    return search(patchable(transformer(), seq_len=6), 0.003)
