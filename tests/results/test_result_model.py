"""The identity of a model: equal for equal models, another for other weights and settings."""

from __future__ import annotations

from dataclasses import asdict

from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model

from pahq_plugin.results.result import Searched, model_name
from tests.helpers.small import patchable, small_model, transformer


def differing(one: Searched, other: Searched) -> set[str]:
    return {name for name, value in asdict(one).items() if asdict(other)[name] != value}


def test_what_tells_models_apart() -> None:
    model = Searched.of(small_model())
    assert model == Searched.of(small_model()) and model.edges == len(small_model().edges)
    assert differing(model, Searched.of(small_model(seed=1))) == {"digest"}
    assert differing(model, Searched.of(small_model(model_name="other"))) == {"name"}
    assert "edges" in differing(model, Searched.of(patchable(transformer(), seq_len=6)))


def test_a_model_without_a_name_has_that_of_its_class() -> None:
    model = patchable_model(
        MicroModel(), factorized=True, slice_output="last_seq", seq_len=None, separate_qkv=None
    )
    assert model_name(model) == "MicroModel"
