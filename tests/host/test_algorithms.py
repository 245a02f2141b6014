"""The host's algorithms by key: their options, and the same order of nodes in every process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.prune_algos import prune_algos

from pahq_plugin.errors import ConfigError
from pahq_plugin.host.algorithms import (
    enter_algorithm,
    host_function,
    host_keys,
    host_options,
    sized_as_the_truth,
)
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.small import loader, small_model


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models as an algorithm of this test is given them; the host's tables are put back."""
    given: list[Any] = []

    def record(model: Any, prompts: Any, true_edges: Any, size: int = 3, *, fails: bool = False) -> Any:
        given.append((list(model.edges), list(model.patch_masks), [*model.dest_wrappers], size))
        if fails:
            raise ZeroDivisionError
        return {}

    monkeypatch.setattr(prune_algos, "PRUNE_ALGOS", list(prune_algos.PRUNE_ALGOS))
    monkeypatch.setattr(prune_algos, "PRUNE_ALGO_DICT", dict(prune_algos.PRUNE_ALGO_DICT))
    enter_algorithm("recorded", "Recorded", record)
    return given


def test_an_algorithm_is_entered_once(entered: list[Any]) -> None:
    count = len(prune_algos.PRUNE_ALGOS)
    assert host_keys()[-1] == "recorded" and host_options("recorded") == {"size": 3, "fails": False}
    enter_algorithm("recorded", "Another", lambda *_: {})
    assert len(prune_algos.PRUNE_ALGOS) == count
    assert prune_algos.PRUNE_ALGO_DICT["recorded"].name == "Recorded"


def test_destinations_are_in_the_order_of_their_names(entered: list[Any]) -> None:
    model = small_model()
    before = model.dest_wrappers, model.patch_masks, model.edges
    host_function("recorded", {"size": 5})(model, loader(), None)
    ((_, masks, wrappers, size),) = entered
    assert masks == sorted(model.patch_masks) and size == 5
    names = [wrapper.module_name for wrapper in wrappers]
    assert names == sorted(names)
    assert all(now is old for now, old in zip(
        (model.dest_wrappers, model.patch_masks, model.edges), before, strict=True
    ))  # fmt: skip


def test_an_error_gives_the_model_back(entered: list[Any]) -> None:
    model = small_model()
    before = model.dest_wrappers, model.patch_masks
    has_adam = hasattr(torch.optim, "adam")
    with pytest.raises(ZeroDivisionError):
        host_function("recorded", {"fails": True})(model, loader(), None)
    assert model.dest_wrappers is before[0] and model.patch_masks is before[1]
    assert hasattr(torch.optim, "adam") == has_adam


def test_sweeps_go_through_edges_in_canonical_order(
    entered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_plugin.host.algorithms.SWEEPS", {"recorded"})
    model = small_model()
    host_function("recorded")(model, loader(), None)
    assert entered[0][0] == canonical_edges(model) and isinstance(model.edges, set)


def test_an_option_that_an_algorithm_lacks_is_named(entered: list[Any]) -> None:
    with pytest.raises(ConfigError, match="'depth'"):
        host_function("recorded", {"depth": 1})


def test_algorithms_that_look_for_the_official_size() -> None:
    assert sized_as_the_truth("Circuit Probing", {})
    assert not sized_as_the_truth("Circuit Probing", {"circuit_sizes": [10]})
    assert not sized_as_the_truth("ACDC", {})
