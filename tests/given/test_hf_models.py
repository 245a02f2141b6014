"""Hugging Face models in memory: everything that is not as configured is accounted for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError
from pahq_plugin.models.hugging_face import hooked_model
from tests.helpers.hugging_face import MODELS, VOCABULARY, hf_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LoraLinear(nn.Module):
    """As `peft` puts it into a model: it answers ``weight`` with the base layer's."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_layer = base
        width_in, width_out = (
            base.weight.shape[::-1] if isinstance(base, nn.Linear) else base.weight.shape
        )
        self.lora_A = nn.Parameter(torch.full((width_in, 1), 0.02, dtype=base.weight.dtype))
        self.lora_B = nn.Parameter(torch.full((1, width_out), 0.02, dtype=base.weight.dtype))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.lora_A @ self.lora_B


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def adapted(path: str, model: Any) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, name, LoraLinear(getattr(owner, name)))


def hooked(path: str, model: Any) -> None:
    """It acts behind the tokens that are compared."""

    def late(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :20], 1.5 * out[:, 20:]], dim=1)

    model.get_submodule(path).register_forward_hook(late)


def replaced(path: str, module: nn.Module, model: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def masked(model: Any) -> None:
    model.transformer.h[0].attn.bias[..., 20:, :10] = False


def numbered(path: str, value: float, model: Any) -> None:
    replaced(path, value, model)  # type: ignore[arg-type]


def patched(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def slower(model: Any) -> None:
    model.model.rotary_emb.inv_freq /= 2


CASES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "lora": ("llama", partial(adapted, "model.layers.1.self_attn.q_proj"), "q_proj, a LoraLinear"),
    "lora of gpt2": ("gpt2", partial(adapted, "transformer.h.0.mlp.c_fc"), "mlp.c_fc, a LoraLinear"),
    "hook": ("gpt2", partial(hooked, "transformer.h.1.mlp"), "hooks on transformer.h.1.mlp"),
    "function": ("gpt2", partial(replaced, "transformer.h.0.mlp.act", nn.GELU()), "mlp.act, a GELU"),
    "mask": ("gpt2", masked, "the edited transformer.h.0.attn.bias"),
    "eps": ("gpt2", partial(numbered, "transformer.h.0.ln_1.eps", 1e-4), "transformer.h.0.ln_1.eps of"),
    "scaling": ("llama", partial(numbered, "model.layers.0.self_attn.scaling", 0.3), "scaling of"),
    "method": ("llama", patched, "the replaced forward of model.layers.0.mlp"),
    "frequencies": ("qwen2", slower, "the edited model.rotary_emb.inv_freq"),
    "pruned": (
        "llama", lambda m: prune.l1_unstructured(m.model.layers[0].mlp.up_proj, "weight", 0.3),
        "hooks on model.layers.0.mlp.up_proj",
    ),
    "parametrised": (
        "llama",
        lambda m: parametrize.register_parametrization(m.lm_head, "weight", Halved()),
        "lm_head, a ParametrizedLinear",
    ),
    "a bias": (
        "llama",
        lambda m: m.model.layers[1].self_attn.o_proj.register_parameter(
            "bias", nn.Parameter(torch.ones(32, dtype=m.dtype))
        ),
        "the additional model.layers.1.self_attn.o_proj.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_what_a_conversion_would_lose_is_refused_by_name(case: str, dtype: torch.dtype) -> None:
    name, edit, said = CASES[case]
    model = hf_model(name, dtype=dtype)
    edit(model)
    with pytest.raises(ModelError, match="configuration") as error:
        pahq.from_hugging_face(model)
    assert said in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_models_as_they_are_made_are_converted(name: str, dtype: torch.dtype) -> None:
    """Also with dropout, gradients and another implementation of attention; and nothing is changed."""
    model = hf_model(name, dtype=dtype).train().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    hooked_model(model)
    assert model.training and next(model.parameters()).dtype == dtype
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_resized_vocabulary_is_the_models_own() -> None:
    model = hf_model("llama")
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    assert hooked_model(model).cfg.d_vocab == VOCABULARY + 5


class Louder(type(hf_model("llama"))):  # type: ignore[misc]
    """Its class computes something that its configuration does not say."""

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        out.logits = out.logits * torch.linspace(1, 1.01, out.logits.shape[-1], dtype=out.logits.dtype)
        return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_in_16_bits_are_compared_as_fp32_copies(dtype: torch.dtype) -> None:
    model = Louder(hf_model("llama").config).to(dtype).eval()
    with pytest.raises(ModelError, match="differ"):
        pahq.from_hugging_face(model)
