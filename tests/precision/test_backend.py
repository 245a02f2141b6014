"""A model is lent once at a time and given back as it was; an edge, a head or nothing under test
decides what is high."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.choices import POLICIES
from pahq_plugin.errors import ConfigError, GraphError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision import modules as attention
from pahq_plugin.precision.backend import Backend, mixed_precision
from pahq_plugin.precision.policy import EVERYTHING, NOTHING, HighParts
from tests.helpers.mixed import ablated, int8
from tests.helpers.small import (
    KINDS,
    activations,
    attention_names,
    logits,
    patchable,
    signal_to_noise,
    tokens,
    transformer,
)


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


def expected_parts(policy: str, own: HighParts, source: HighParts) -> HighParts:
    return {
        "investigated_head": own,
        "investigated_path": own | source,
        "uniform": NOTHING,
        "full": EVERYTHING,
        "hybrid": own,
    }[policy]


def head(layer: int, index: int) -> HighParts:
    return HighParts(heads=frozenset({(layer, index)}))


def mlp(layer: int) -> HighParts:
    return HighParts(mlps=frozenset({layer}))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("name", "own", "source"),
    [
        ("Resid Start->A0.3.Q", head(0, 3), NOTHING),
        ("A0.1->A1.2.K", head(1, 2), head(0, 1)),
        ("MLP 0->A1.0.V", head(1, 0), mlp(0)),
        ("A0.2->MLP 0", mlp(0), head(0, 2)),
        ("MLP 0->MLP 1", mlp(1), mlp(0)),
        ("A1.3->Resid End", HighParts(unembed=True), head(1, 3)),
        ("Resid Start->Resid End", HighParts(unembed=True), NOTHING),
    ],
)
def test_an_edge_makes_its_own_parts_high(
    model: PatchableModel, policy: Any, name: str, own: HighParts, source: HighParts
) -> None:
    edge = model.edge_name_dict[None][name]
    with mixed_precision(model, int8(policy=policy)) as backend:
        backend.investigate(edge)
        assert backend.high == expected_parts(policy, own, source)
        assert backend.parts_for(edge) == backend.high
        backend.investigate(None)
        assert backend.high == (EVERYTHING if policy == "full" else NOTHING)


def test_without_separate_inputs_an_edge_makes_its_head_high() -> None:
    model = patchable(transformer(separate_qkv=False), separate_qkv=False)
    with mixed_precision(model, int8()) as backend:
        backend.investigate(model.edge_name_dict[None]["A0.1->A1.2"])
        assert backend.high == head(1, 2)


@pytest.mark.parametrize("slot", "QKV")
def test_investigating_an_edge_computes_its_head_in_fp32(model: PatchableModel, slot: str) -> None:
    """Not only the record of what is high: the numbers follow every change of edge."""
    names = attention_names(0, slot.lower())
    exact = activations(model, names, tokens())[names[0]]
    with mixed_precision(model, int8()) as backend:
        for index in (2, 0, 3):
            backend.investigate(model.edge_name_dict[None][f"Resid Start->A0.{index}.{slot}"])
            mixed = activations(model, names, tokens())[names[0]]
            close = [
                torch.allclose(mixed[:, :, h], exact[:, :, h], rtol=1e-5, atol=1e-6) for h in range(4)
            ]
            assert close == [h == index for h in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mlp_under_test_is_high(models: dict[str, PatchableModel], kind: str) -> None:
    model = models[kind]
    source = {"layer_norm": "A1.0", "rotary_gated": "A1.0", "parallel": "A0.0"}[kind]
    read, written = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
    with mixed_precision(model, int8()) as backend:
        errors = []
        for name in (f"{source}->MLP 1", "Resid Start->MLP 0"):
            backend.investigate(model.edge_name_dict[None][name])
            values = activations(model, [read, written], tokens())
            block = model.blocks[1]
            with backend.own_precision(), torch.no_grad():
                normed = values[read] if kind == "parallel" else block.ln2(values[read])
                errors.append(signal_to_noise(block.mlp(normed), values[written]))
    assert errors[0] > 100 and 20 < errors[1] < 80


def test_a_pair_makes_its_head_high(model: PatchableModel) -> None:
    for policy, expected in (
        ("investigated_head", head(1, 3)),
        ("investigated_path", head(1, 3)),
        ("uniform", NOTHING),
        ("full", EVERYTHING),
    ):
        with mixed_precision(model, int8(policy=policy)) as backend:
            backend.investigate((1, 3))
            assert backend.high == expected


@pytest.mark.parametrize("target", [(2, 0), (0, 4), (-1, 0), (0, -1), (0, 0.5)])
def test_unknown_heads_are_refused(model: PatchableModel, target: Any) -> None:
    with mixed_precision(model, int8()) as backend:
        backend.investigate((1, 1))
        with pytest.raises(GraphError):
            backend.investigate(target)
        assert backend.high == head(1, 1)
