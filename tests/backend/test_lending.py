"""What is lent, once at a time, and given back as it was."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.errors import ConfigError, ModelError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision import modules as attention
from pahq_plugin.precision.backend import Backend, mixed_precision
from tests.helpers.mixed import ablated, int8
from tests.helpers.small import KINDS, activations, attention_names, logits, tokens, transformer


def snapshot(model: PatchableModel) -> tuple[Any, ...]:
    """Everything by which a change of the model could be told."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {
        (name, key): list(value) if isinstance(value, (dict, list)) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not isinstance(value, Tensor)
    }
    flags = [(p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()]
    return state, attributes, flags, logits(model, tokens())


def assert_unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1] == after[1]
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])


def use(model: PatchableModel, backend: Backend) -> None:
    """A bit of everything that a block is used for."""
    backend.investigate(canonical_edges(model)[7])
    with patch_mode(model, ablated(model), edges=[]):
        logits(model, tokens())
    with backend.own_precision():
        logits(model, tokens())
    activations(model, attention_names(0), tokens())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_comes_back_as_it_was(models: dict[str, PatchableModel], kind: str) -> None:
    model = models[kind]
    before = snapshot(model)
    with mixed_precision(model, int8()) as backend:
        use(model, backend)
        assert not torch.equal(logits(model, tokens()), before[-1])
    assert_unchanged(before, snapshot(model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("own", [False, True])
def test_the_model_comes_back_after_an_exception(
    model: PatchableModel, error: type[BaseException], own: bool
) -> None:
    before = snapshot(model)

    def interrupted() -> None:
        with mixed_precision(model, int8()) as backend:
            use(model, backend)
            if own:
                with backend.own_precision():
                    raise error
            raise error

    with pytest.raises(error):
        interrupted()
    assert_unchanged(before, snapshot(model))


def test_the_model_comes_back_after_an_interrupt_in_a_forward(
    model: PatchableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model)

    def interrupt(*_: Any, **__: Any) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attention, "softmax", interrupt)
        with pytest.raises(KeyboardInterrupt), mixed_precision(model, int8()):
            model(tokens())
    assert_unchanged(before, snapshot(model))


def test_a_lent_model_is_not_lent_again(model: PatchableModel) -> None:
    before = snapshot(model)
    with mixed_precision(model, int8()):
        lent = logits(model, tokens())
        with pytest.raises(ConfigError, match="lent"), mixed_precision(model, int8()):
            pass
        assert torch.equal(logits(model, tokens()), lent)
    assert_unchanged(before, snapshot(model))
    with mixed_precision(model, int8()):
        assert torch.equal(logits(model, tokens()), lent)


def test_a_deep_copy_of_a_lent_model_is_independent(model: PatchableModel) -> None:
    with mixed_precision(model, int8()) as backend:
        backend.investigate((0, 1))
        lent = logits(model, tokens())
        twin = deepcopy(model)
        assert torch.equal(logits(twin, tokens()), lent)
        twin.blocks[0].attn.W_Q.data.mul_(3)
        changed = logits(twin, tokens())
        assert not torch.equal(changed, lent)
        backend.investigate(None)
        assert torch.equal(logits(twin, tokens()), changed)
        backend.investigate((0, 1))
        assert torch.equal(logits(model, tokens()), lent)
        model.blocks[1].attn.W_V.data.mul_(2)
        assert torch.equal(logits(twin, tokens()), changed)
        assert not torch.equal(logits(model, tokens()), lent)


def test_models_without_heads_are_refused() -> None:
    micro = patchable_model(MicroModel(), factorized=True, slice_output="last_seq")
    with pytest.raises(ModelError, match="not a transformer"), mixed_precision(micro, int8()):
        pass


def test_what_is_not_patchable_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="not a PatchableModel"),
        mixed_precision(transformer(), int8()),  # type: ignore[arg-type]
    ):
        pass


def test_nan_weights_are_refused_by_name(model: PatchableModel) -> None:
    model.blocks[1].attn.W_K.data[0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.W_K"), mixed_precision(model, int8()):
        pass
