"""Configurations of Hugging Face models: every supported one, and values that none may have."""

from __future__ import annotations

from typing import Any

import pytest

from pahq_plugin.errors import ModelError
from pahq_plugin.models.hf_configs import ARCHITECTURES, hooked_arguments
from tests.helpers.hugging_face import MODELS, hf_model


def test_every_architecture_is_tried() -> None:
    assert {type(hf_model(name)).__name__ for name in MODELS} == set(ARCHITECTURES)


LINEAR = {"rope_type": "linear", "factor": 2.0}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "biases": ("llama", {"attention_bias": True}, "attention_bias"),
    "unscaled": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    "scaled rotary": ("llama", {"rope_scaling": LINEAR}, "linear"),
    "scaled qwen": ("qwen2", {"rope_scaling": LINEAR}, "linear"),
    "missing": ("gpt2", {"n_head": None}, "GPT2LMHeadModel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_be_converted_are_refused(case: str) -> None:
    name, values, word = REFUSED[case]
    model = hf_model(name)
    hooked_arguments(type(model).__name__, model.config)
    for key, value in values.items():
        setattr(model.config, key, value)
    with pytest.raises(ModelError, match=word):
        hooked_arguments(type(model).__name__, model.config)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_the_weights(name: str) -> None:
    model: Any = hf_model(name)
    found = hooked_arguments(type(model).__name__, model.config)
    assert (found["d_vocab"], found["d_model"]) == tuple(model.get_input_embeddings().weight.shape)
    blocks = (
        model.transformer.h
        if name.startswith("gpt2")
        else getattr(model, model.base_model_prefix).layers
    )
    assert found["n_layers"] == len(blocks)
    assert found["n_heads"] * found["d_head"] >= found["d_model"] // 2
