"""Digests of models, and what checks pass; models that they refuse are in `tests/bad_input`."""

from __future__ import annotations

import pytest
import torch
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patchable_model

from pahq_plugin.models.checks import (
    check_finite,
    check_patchable,
    check_transformer,
    configuration_digest,
    model_device,
    model_digest,
    output_width,
    weight_parameters,
)
from tests.helpers.small import KINDS, VOCABULARY, small_model, tokens, transformer


def test_weights_are_the_models_own_without_the_masks() -> None:
    model = small_model()
    plain = dict(transformer().named_parameters())
    found = dict(weight_parameters(model))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_counts_in_the_digest(kind: str) -> None:
    model = small_model(kind)
    before = model_digest(model)
    seen = {before}
    for _, parameter in weight_parameters(model):
        flat = parameter.data.view(-1)
        old = flat[-1].clone()
        flat[-1] = torch.nextafter(old, torch.tensor(torch.inf))
        seen.add(model_digest(model))
        flat[-1] = old
    assert model_digest(model) == before
    assert len(seen) == 1 + len(list(weight_parameters(model)))


def test_the_digest_of_the_configuration() -> None:
    """The output positions and the arithmetic count; a longer context does not, nor do weights."""
    own = configuration_digest(small_model())
    assert configuration_digest(small_model(seed=1)) == own
    assert configuration_digest(small_model(n_ctx=32)) == own
    others = [
        small_model(act_fn="relu"),
        small_model(normalization_type="RMS"),
        patchable_model(transformer(), True, "not_first_seq", separate_qkv=True),
    ]
    assert len({own, *map(configuration_digest, others)}) == 4


def test_a_right_model_passes_and_is_returned() -> None:
    model = small_model()
    assert check_patchable(model) is model
    check_transformer(model, "pahq")
    check_finite(model)


def test_widths_and_devices() -> None:
    assert output_width(small_model(), tokens()) == VOCABULARY
    micro = patchable_model(MicroModel(), factorized=True, slice_output="last_seq")
    assert output_width(micro, torch.zeros(1, 3, 2)) == micro(torch.zeros(1, 3, 2)).shape[-1]
    assert model_device(micro) == torch.device("cpu")
