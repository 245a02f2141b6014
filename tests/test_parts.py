"""Attention scores, values and unembedding in few bits, against a plain forward of TransformerLens
whose operands hooks round by a reference of their own.

Most models here are FP64. Two forwards that sum in another order differ by some 1e-15 there, so that
no operand lies near enough to a tie to be rounded to the other side in one of them, and agreement can
be asked for to nine digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer

from pahq_plugin.backend import mixed_precision
from pahq_plugin.config import PrecisionConfig
from pahq_plugin.discovery import discover
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.kernels import kernels_of
from tests.helpers.lent import unusual_state
from tests.helpers.small import (
    KINDS,
    activations,
    loader,
    logits,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)

MODELS: dict[str, dict[str, Any]] = {
    **KINDS,
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"positional_embedding_type": "alibi"},
    "attention_only": {"attn_only": True},
    "grouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "soft_cap": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 5.0},
    "bidirectional": {"attention_dir": "bidirectional"},
}
FORMATS = ("int8", "fp8_e4m3", "bf16")
NEW_PARTS = ("scores", "values", "unembed")
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

MANTISSA = {"fp8_e4m3": 3, "bf16": 7}
LEAST_EXPONENT = {"fp8_e4m3": -6, "bf16": -126}
LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0}

Parts = Mapping[str, str]
"""Formats by part, ``{"blocks.1.scores": "int8", "unembed": "bf16"}``; all else stays as it is."""

Head = tuple[int, int]


def nearest(x: Tensor, name: str, axis: int) -> Tensor:
    """``x`` as a format holds it, with a scale for each slice along ``axis`` (BF16: none)."""
    scale = torch.ones_like(x.sum(dim=axis, keepdim=True))
    if name in LARGEST:
        scale = x.abs().amax(dim=axis, keepdim=True) / LARGEST[name]
        scale = scale.where(scale > 0, 1.0)
    codes, step = x / scale, torch.ones_like(x)
    if name in MANTISSA:
        exponent = (torch.frexp(codes).exponent - 1).clamp_min(LEAST_EXPONENT[name])
        step = torch.ldexp(step, exponent - MANTISSA[name])
    return (codes / step).round() * step * scale


def straight_through(
    x: Tensor, name: str, axis: int, head_axis: int = 2, high: int | None = None
) -> Tensor:
    """The same with the gradient of ``x``, and with one head as it was."""
    change = (nearest(x, name, axis) - x).detach()
    if high is not None:
        change.select(head_axis, high).zero_()
    return x + change


def oracle(
    model: HookedTransformer, parts: Parts, x: Tensor, high: Head | None = None, **keywords: Any
) -> Tensor:
    """Logits at the last position, of tokens or (with ``start_at_layer``) of a residual stream.

    Queries and keys ``[batch, pos, head, d_head]`` are rounded after rotation, along d_head; patterns
    ``[batch, head, query_pos, key_pos]`` and values ``[batch, pos, head, d_head]`` along the keys.
    """
    rotated = "rot_" if model.cfg.positional_embedding_type == "rotary" else ""
    operands = {
        "scores": [(f"hook_{rotated}q", -1, 2), (f"hook_{rotated}k", -1, 2)],
        "values": [("hook_pattern", -1, 1), ("hook_v", 1, 2)],
    }

    def rounding(name: str, axis: int, head_axis: int, own: int | None) -> Callable[..., Tensor]:
        return lambda value, hook: straight_through(value, name, axis, head_axis, own)

    hooks = []
    for part, name in parts.items():
        if part != "unembed":
            _, layer, which = part.split(".")
            own = high[1] if high is not None and high[0] == int(layer) else None
            hooks += [
                (f"blocks.{layer}.attn.{hook}", rounding(name, axis, head_axis, own))
                for hook, axis, head_axis in operands[which]
            ]
    if "unembed" in parts:
        name, model = parts["unembed"], deepcopy(model)
        model.unembed.W_U.data = nearest(model.unembed.W_U.data, name, 0)
        model.unembed.register_forward_pre_hook(
            lambda _, arguments: (straight_through(arguments[0], name, -1),)
        )
    return model.run_with_hooks(x, fwd_hooks=hooks, **keywords)[:, -1]


def by_block(part: str, name: str, blocks: int = 2) -> dict[str, str]:
    """One part in all blocks."""
    return {part: name} if part == "unembed" else {f"blocks.{i}.{part}": name for i in range(blocks)}


def only(low: str, *parts: Any, **changes: Any) -> PrecisionConfig:
    """``low`` for these parts alone."""
    return PrecisionConfig(**{"low": low, "mlp": "fp32", "parts": parts, **changes})


def mixed(model: PatchableModel, precision: PrecisionConfig, target: Any = None) -> Tensor:
    with mixed_precision(model, precision) as backend:
        backend.investigate(target)
        return logits(model, tokens())[:, -1]


def both(kind: str = "layer_norm", **changes: Any) -> tuple[HookedTransformer, PatchableModel]:
    """The same transformer twice, plain and patchable."""
    arguments = {"dtype": torch.float64, **MODELS[kind], **changes}
    return transformer(**arguments), patchable(transformer(**arguments))


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


# Bad input ----------------------------------------------------------------------------------------


WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"parts": ("qkv", "mlp")}, ("parts=('qkv', 'mlp')", "qkv, output, scores, values, unembed")),
    ({"parts": ("scores", "scores")}, ("parts=('scores', 'scores')", "distinct")),
    ({"parts": "scores"}, ("parts='scores'", "qkv, output, scores, values, unembed")),
    ({"formats": {"blocks.0.attn": "int8"}}, ("'blocks.0.attn'", "blocks.LAYER.PART", "scores", "mlp")),
    ({"formats": {"blocks.0.unembed": "int8"}}, ("'blocks.0.unembed'", "or unembed")),
    ({"formats": {"scores": "int8"}}, ("'scores'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.-1.mlp": "int8"}}, ("'blocks.-1.mlp'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.00.mlp": "int8"}}, ("'blocks.00.mlp'", "blocks.LAYER.PART")),
    ({"formats": {"blocks.0.mlp": "fp7"}}, ("'fp7'", "bf16", "int8")),
    ({"formats": {"blocks.0.mlp": "int4"}}, ("blocks.0.mlp='int4'", "weights only", "int8")),
    ({"formats": {"unembed": "int4"}}, ("unembed='int4'", "weights only", "int8")),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_parts_and_formats_that_do_not_exist_are_refused(
    arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        PrecisionConfig(**arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message


def lent(model: PatchableModel, precision: PrecisionConfig) -> None:
    """As a user of the backend gets to the check."""
    with mixed_precision(model, precision):
        logits(model, tokens())


def searched(engine: str, model: PatchableModel, precision: PrecisionConfig) -> None:
    discover(model, loader(), precision=precision, engine=engine, progress=False)


USES = {
    "mixed_precision": lent,
    "incremental": partial(searched, "incremental"),
    "host": partial(searched, "host"),
}

LACKING: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("layer_norm", {"formats": {"blocks.2.scores": "int8"}}, ("'blocks.2.scores'", "blocks 0 to 1")),
    ("layer_norm", {"formats": {"blocks.10.mlp": "fp32"}}, ("'blocks.10.mlp'", "blocks 0 to 1")),
    ("attention_only", {"formats": {"blocks.0.mlp": "int8"}}, ("'blocks.0.mlp'", "no MLP", "leave it")),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("kind", "arguments", "words"), LACKING)
def test_parts_that_the_model_lacks_are_refused(
    kind: str, arguments: dict[str, Any], words: tuple[str, ...], use: str
) -> None:
    model = patchable(transformer(**MODELS[kind]))
    before = unusual_state(model)
    with pytest.raises(ConfigError) as caught:
        USES[use](model, PrecisionConfig(low="int8", **arguments))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message
    before.assert_unchanged()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("formats", [{"unembed": "fp8_e5m2"}, {"blocks.1.mlp": "fp8_e5m2"}])
def test_formats_without_a_kernel_are_refused_where_one_is_demanded(
    formats: dict[str, str], use: str
) -> None:
    """No device multiplies E5M2 by E5M2."""
    model = patchable(transformer())
    before = unusual_state(model)
    with pytest.raises(ConfigError) as caught:
        USES[use](model, only("fp32", kernel="native", formats=formats))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    here = ", ".join(kernels_of(torch.device("cpu"))) or "none"
    assert all(word in message for word in ("fp8_e5m2", "native", f"have one: {here}", "auto")), message
    before.assert_unchanged()


@pytest.mark.parametrize("formats", [5, [1], "ab"])
def test_formats_that_are_no_pairs_are_refused(formats: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be formats by part, such as"):
        PrecisionConfig(formats=formats)


def test_a_part_that_the_model_lacks_is_refused_where_nothing_is_screened() -> None:
    precision = PrecisionConfig(low="int8", guard=math.inf, formats={"blocks.9.mlp": "bf16"})
    with pytest.raises(ConfigError, match=r"blocks\.9\.mlp.*blocks 0 to 1"):
        discover(small_model(), loader(), precision=precision, progress=False)
