"""Attention scores, values and unembedding in few bits, against a plain forward of TransformerLens
whose operands hooks round by a reference of their own.

Most models here are FP64. Two forwards that sum in another order differ by some 1e-15 there, so that
no operand lies near enough to a tie to be rounded to the other side in one of them, and agreement can
be asked for to nine digits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.lent import unusual_state
from tests.helpers.rounded_operands import MODELS, Head, both, by_block, only, oracle
from tests.helpers.small import (
    KINDS,
    activations,
    logits,
    patchable,
    signal_to_noise,
    tokens,
    transformer,
)

FORMATS = ("int8", "fp8_e4m3", "bf16")

NEW_PARTS = ("scores", "values", "unembed")

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def mixed(model: PatchableModel, precision: PrecisionConfig, target: Any = None) -> Tensor:
    with mixed_precision(model, precision) as backend:
        backend.investigate(target)
        return logits(model, tokens())[:, -1]


# Against the oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("low", FORMATS)
@pytest.mark.parametrize("part", NEW_PARTS)
@pytest.mark.parametrize("kind", MODELS)
def test_operands_are_rounded_along_what_is_summed_over(kind: str, part: str, low: str) -> None:
    plain, model = both(kind)
    wanted = oracle(plain, by_block(part, low), tokens())
    close(mixed(model, only(low, part)), wanted)
    exact = logits(model, tokens())[:, -1]
    assert 10 < signal_to_noise(exact, wanted) < 80  # 6 dB a bit: FP32 would be above 100


@pytest.mark.parametrize("low", FORMATS)
@pytest.mark.parametrize("kind", MODELS)
def test_all_three_together(kind: str, low: str) -> None:
    plain, model = both(kind)
    parts = {name: f for part in NEW_PARTS for name, f in by_block(part, low).items()}
    close(mixed(model, only(low, *NEW_PARTS)), oracle(plain, parts, tokens()))


@pytest.mark.parametrize("part", NEW_PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_models_are_rounded_alike(kind: str, part: str) -> None:
    """In FP32 the two forwards differ by 1e-6, so here and there an operand near a tie is rounded to
    the other side, one of a thousand: far less noise (20 dB) than all of them make."""
    plain, model = both(kind, dtype=torch.float32)
    wanted = oracle(plain, by_block(part, "int8"), tokens())
    noise_of_format = signal_to_noise(logits(model, tokens())[:, -1], wanted)
    assert signal_to_noise(wanted, mixed(model, only("int8", part))) > noise_of_format + 20


# What stays high ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["scores", "values"])
@pytest.mark.parametrize("kind", ["layer_norm", "rotary", "alibi", "grouped"])
@pytest.mark.parametrize("head", [(0, 2), (1, 0)])
def test_the_investigated_head_is_not_rounded(kind: str, part: str, head: Head) -> None:
    plain, model = both(kind)
    parts = by_block(part, "int8")
    close(mixed(model, only("int8", part), head), oracle(plain, parts, tokens(), head))
    assert not torch.allclose(oracle(plain, parts, tokens(), head), oracle(plain, parts, tokens()))


@pytest.mark.parametrize("name", ["A1.2->Resid End", "MLP 0->Resid End", "Resid Start->Resid End"])
def test_an_edge_into_the_output_makes_the_unembedding_high(name: str) -> None:
    plain, model = both()
    edge = model.edge_name_dict[None][name]
    close(mixed(model, only("int8", "unembed"), edge), oracle(plain, {}, tokens()))
    with mixed_precision(model, only("int8", "unembed")) as backend:
        assert backend.parts_for(edge).unembed


@pytest.mark.parametrize("name", ["A0.1->A1.2.K", "A0.1->MLP 1"])
def test_any_other_edge_leaves_the_unembedding_low(name: str) -> None:
    plain, model = both()
    edge = model.edge_name_dict[None][name]
    wanted = oracle(plain, {"unembed": "int8"}, tokens())
    close(mixed(model, only("int8", "unembed"), edge), wanted)


@pytest.mark.parametrize("policy", ["full", "uniform"])
def test_policies_without_an_investigated_part(policy: Any) -> None:
    plain, model = both()
    parts = {name: "int8" for part in NEW_PARTS for name in by_block(part, "int8")}
    precision = only("int8", *NEW_PARTS, policy=policy)
    wanted = oracle(plain, {} if policy == "full" else parts, tokens())
    for name in ("A0.1->A1.2.K", "A1.2->Resid End"):
        close(mixed(model, precision, model.edge_name_dict[None][name]), wanted)


# Formats of single parts --------------------------------------------------------------------------


@pytest.mark.parametrize("part", NEW_PARTS)
def test_a_part_of_one_block_has_a_format_of_its_own(part: str) -> None:
    plain, model = both()
    name = "unembed" if part == "unembed" else f"blocks.1.{part}"
    parts = by_block(part, "int8") | {name: "bf16"}
    close(mixed(model, only("int8", part, formats={name: "bf16"})), oracle(plain, parts, tokens()))
    alone = only("fp32", formats={name: "fp8_e4m3"})
    close(mixed(model, alone), oracle(plain, {name: "fp8_e4m3"}, tokens()))


def test_several_parts_each_in_its_own_format() -> None:
    plain, model = both()
    parts = {"blocks.0.scores": "bf16", "blocks.1.values": "int8", "unembed": "fp8_e4m3"}
    close(mixed(model, only("fp32", formats=parts)), oracle(plain, parts, tokens()))


def mlp_outputs(model: PatchableModel, precision: PrecisionConfig) -> list[Tensor]:
    """Outputs of both MLPs, each of its own residual stream in FP64."""
    exact = activations(model, [f"blocks.{i}.hook_resid_pre" for i in range(2)], tokens())
    with mixed_precision(model, precision):
        return [
            activations(
                model, [f"blocks.{i}.hook_mlp_out"], x, start_at_layer=i, stop_at_layer=i + 1
            )[f"blocks.{i}.hook_mlp_out"]
            for i, x in enumerate(exact.values())
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["layer_norm", "rotary_gated"])
def test_the_mlp_of_one_block_has_a_format_of_its_own(kind: str) -> None:
    _, model = both(kind)
    general = {
        name: mlp_outputs(model, PrecisionConfig(low="int8", mlp=name)) for name in ("int8", "bf16")
    }
    some = mlp_outputs(model, PrecisionConfig(low="int8", mlp="int8", formats={"blocks.1.mlp": "bf16"}))
    assert torch.equal(some[0], general["int8"][0]) and torch.equal(some[1], general["bf16"][1])
    assert not torch.equal(general["int8"][0], general["bf16"][0])
    assert not torch.equal(general["int8"][1], general["bf16"][1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"mlp": "int8", "formats": {"blocks.1.mlp": "bf16"}},
            {"mlp": "bf16", "formats": {"blocks.0.mlp": "int8"}},
        ),
        (
            {"mlp": "fp32", "formats": {"blocks.1.mlp": "bf16"}},
            {"mlp": "bf16", "formats": (("blocks.0.mlp", "fp32"),)},
        ),
        (
            {"low": "int8", "parts": ("qkv",)},
            {"low": "fp32", "formats": {"blocks.0.qkv": "int8", "blocks.1.qkv": "int8"}},
        ),
        (
            {"low": "int8", "parts": ("scores", "unembed"), "formats": {"unembed": "fp32"}},
            {"low": "int8", "parts": ("scores",)},
        ),
    ],
)
def test_two_ways_to_say_the_same_give_the_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    model = patchable(transformer())
    first, second = (mixed(model, PrecisionConfig(**each)) for each in (one, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, logits(model, tokens())[:, -1])


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", FORMATS)
@pytest.mark.parametrize("part", NEW_PARTS)
def test_gradients_pass_straight_through_the_rounding(part: str, low: str) -> None:
    plain, model = both("rotary")
    start = activations(model, ["blocks.0.hook_resid_pre"], tokens())["blocks.0.hook_resid_pre"]
    gradients = []
    for forward in (
        partial(oracle, plain, by_block(part, low)),
        lambda x, **keywords: model(x, **keywords)[:, -1],
    ):
        x = start.clone().requires_grad_()
        with mixed_precision(model, only(low, part)):
            forward(x, start_at_layer=0)[:, 3].sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    close(gradients[1], gradients[0])
    assert bool(gradients[1].isfinite().all()) and bool((gradients[1] != 0).all())


# Giving back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["layer_norm", "rotary_gated", "attention_only"])
def test_the_model_is_given_back_as_it_was(kind: str, fails: bool) -> None:
    model = patchable(transformer(**MODELS[kind]))
    before = unusual_state(model)
    plain = logits(model, tokens())
    edge = canonical_edges(model)[0]

    def run() -> None:
        with mixed_precision(model, only("int8", *NEW_PARTS)) as backend:
            backend.investigate(edge)
            logits(model, tokens())
            backend.investigate(None)
            assert not torch.equal(logits(model, tokens()), plain)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    before.assert_unchanged()
    assert torch.equal(logits(model, tokens()), plain)
