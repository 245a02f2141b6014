"""Models of the tests of the backend."""

from __future__ import annotations

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

from tests.helpers.small import KINDS, small_model


@pytest.fixture(scope="module")
def models() -> dict[str, PatchableModel]:
    return {kind: small_model(kind, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture()
def model() -> PatchableModel:
    return small_model()
