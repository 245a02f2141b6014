"""What an edge, a head or nothing under test makes high."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.choices import POLICIES
from pahq_plugin.errors import GraphError
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.policy import EVERYTHING, NOTHING, HighParts
from tests.helpers.mixed import int8
from tests.helpers.small import (
    KINDS,
    activations,
    attention_names,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)


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


@pytest.mark.parametrize("target", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_unknown_heads_are_refused(model: PatchableModel, target: tuple[int, int]) -> None:
    with mixed_precision(model, int8()) as backend:
        backend.investigate((1, 1))
        with pytest.raises(GraphError, match="layers 0 to 1 with heads 0 to 3"):
            backend.investigate(target)
        assert backend.high == head(1, 1)


@pytest.mark.parametrize("target", ["A0.0", (0, 1, 2), (0, 0.5), 3])
def test_what_is_no_edge_and_no_head_is_refused(model: PatchableModel, target: Any) -> None:
    with mixed_precision(model, int8()) as backend, pytest.raises(GraphError):
        backend.investigate(target)


def test_unknown_edges_are_refused(model: PatchableModel) -> None:
    other = small_model(n_heads=5)
    foreign = other.edge_name_dict[None]["Resid Start->A0.4.Q"]
    with mixed_precision(model, int8()) as backend, pytest.raises(GraphError, match=r"A0\.4\.Q"):
        backend.investigate(foreign)
