"""The patching backend: which head is high, how far the others are off, and giving the model back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from auto_circuit.model_utils.micro_model_utils import MicroModel
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import PatchType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from torch.nn.functional import log_softmax
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin import attention
from pahq_plugin.backend import Backend, mixed_precision
from pahq_plugin.config import POLICIES, PrecisionConfig
from pahq_plugin.errors import ConfigError, GraphError, ModelError
from pahq_plugin.formats import get_format
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.policy import EVERYTHING, NOTHING, HighParts
from tests.helpers import architectures
from tests.helpers.small import (
    KINDS,
    OTHER_KINDS,
    activations,
    attention_names,
    loader,
    logits,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)

LEAST_DB = {
    "fp8_e4m3": 18.0,
    "fp8_e5m2": 12.0,
    "int8": 27.0,
    "bf16": 42.0,
}
"""Least signal-to-noise of a low head's queries, keys and values.

Floats of n mantissa bits: an operand is off by at most 2^-(n+1) of its size, 6.02 (n + 1) dB below
it. Both operands are rounded, independently: 3 dB less. A sum whose terms happen to cancel has less
signal than terms: 3 dB of margin. So 6.02 (n + 1) - 6 dB: 18 for E4M3 (n = 3), 12 for E5M2 (n = 2),
42 for bf16 (n = 7). Scaled rows keep all but negligible entries out of the subnormal numbers.

int8 with a scale per row: an entry is off by at most half a step, max / 254, so the noise relative
to the row's root mean square is at most the crest factor / 254, and the crest factor of d entries is
at most sqrt(d). Two operands and the margin as above: 20 log10(254 / sqrt(32)) - 6 = 27 dB.
"""

MOST_DB = 80.0
"""A head above this is not low: bf16's rms error is some 10 dB below its largest one, FP32's is near
140 dB."""


@pytest.fixture(scope="module")
def models() -> dict[str, PatchableModel]:
    return {kind: small_model(kind, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture()
def model() -> PatchableModel:
    return small_model()


def int8(**changes: Any) -> PrecisionConfig:
    return PrecisionConfig(**{"low": "int8", "mlp": "int8", **changes})


def ablated(model: PatchableModel, seed: int = 1) -> Tensor:
    """Source outputs on corrupt prompts, in the model's own precision."""
    return src_ablations(model, tokens(seed))


def without_bias(model: PatchableModel, layer: int, values: dict[str, Tensor]) -> list[Tensor]:
    """Q, K and V ``[batch, pos, head, d_head]`` before the bias, which is never rounded."""
    module = model.blocks[layer].attn
    names = attention_names(layer)
    return [values[n] - getattr(module, f"b_{n[-1].upper()}") for n in names]


# Per-head oracle (A4) -----------------------------------------------------------------------------


def one_layer(model: PatchableModel, layer: int, residual: Tensor) -> dict[str, Tensor]:
    """Q, K and V of one layer that reads the given residual stream."""
    return activations(
        model, attention_names(layer), residual, start_at_layer=layer, stop_at_layer=layer + 1
    )


def assert_only_head_is_exact(value: Tensor, reference: Tensor, index: int, low: str) -> None:
    """Of ``[batch, pos, head, d]`` head ``index`` equals the reference, each other is low."""
    for each in range(value.shape[2]):
        got, wanted = value[:, :, each].double(), reference[:, :, each].double()
        if each == index:
            assert float((got - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
        else:
            assert LEAST_DB[low] <= signal_to_noise(wanted, got) <= MOST_DB


@pytest.mark.parametrize("low", LEAST_DB)
@pytest.mark.parametrize("kind", KINDS)
def test_the_investigated_head_is_fp32_and_the_others_are_low(
    models: dict[str, PatchableModel], kind: str, low: str
) -> None:
    """Each layer starts from the FP32 residual stream, so that only its own rounding is seen."""
    model = models[kind]
    for layer in range(2):
        name = f"blocks.{layer}.hook_resid_pre"
        residual = activations(model, [name], tokens())[name]
        exact = without_bias(model, layer, one_layer(model, layer, residual))
        with mixed_precision(model, PrecisionConfig(low=low)) as backend:
            for index in range(4):
                backend.investigate((layer, index))
                mixed = without_bias(model, layer, one_layer(model, layer, residual))
                for reference, value in zip(exact, mixed, strict=True):
                    assert_only_head_is_exact(value, reference, index, low)


@pytest.mark.parametrize("low", LEAST_DB)
def test_the_output_projection_of_the_investigated_head_is_fp32_too(low: str) -> None:
    """Against FP64, from the very value mixes that the projection read."""
    model = small_model()
    names = ["blocks.0.attn.hook_z", "blocks.0.attn.hook_result"]
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate((0, 2))
        z, result = activations(model, names, tokens()).values()
    exact = torch.einsum("bphi,hio->bpho", z.double(), model.blocks[0].attn.W_O.double())
    assert_only_head_is_exact(result, exact, 2, low)


@pytest.mark.parametrize("parts", ["qkv", "output"])
def test_parts_choose_which_projections_are_low(model: PatchableModel, parts: Any) -> None:
    names = [*attention_names(0), "blocks.0.attn.hook_result"]
    exact = activations(model, names, tokens())
    with mixed_precision(model, int8(parts=(parts,))):
        mixed = activations(model, names, tokens())
    same = [bool(torch.allclose(mixed[n], exact[n], rtol=1e-5, atol=1e-6)) for n in names]
    assert same == ([False] * 4 if parts == "qkv" else [True] * 3 + [False])


def patched_heads(
    model: PatchableModel, corrupt: Tensor, layer: int, edges: list[Any]
) -> dict[str, Tensor]:
    """Q, K and V ``[batch, pos, head, d_head]`` of ``layer`` with ``edges`` patched."""
    with patch_mode(model, corrupt, edges=edges):
        values = activations(model, attention_names(layer), tokens(), stop_at_layer=layer + 1)
    return {name[-1]: value for name, value in values.items()}


def changed_heads(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, list[bool]]:
    """For Q, K and V which heads differ, bitwise."""
    return {
        part: (value != after[part]).transpose(0, 2).flatten(1).any(dim=1).tolist()
        for part, value in before.items()
    }


def assert_edges_change_their_head_alone(model: PatchableModel, corrupt: Tensor, layer: int) -> None:
    """Patches every edge from the input into a head of ``layer``."""
    edges = [e for e in canonical_edges(model) if e.src.name == "Resid Start"]
    edges = [e for e in edges if e.dest.name.startswith(f"A{layer}.")]
    assert edges
    before = patched_heads(model, corrupt, layer, [])
    for edge in edges:
        letter = edge.dest.name[-1].lower()
        expected = {part: [False] * 4 for part in "qkv"}
        for part in letter if letter in "qkv" else "qkv":
            expected[part][edge.dest.head_idx or 0] = True
        after = patched_heads(model, corrupt, layer, [edge])
        assert changed_heads(before, after) == expected, edge.name


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("scale", ["row", "head", "none"])
def test_patching_an_edge_changes_its_head_alone(scale: Any, separate_qkv: bool, layer: int) -> None:
    """With one scale per tensor the heads share it, so that case is another matter."""
    model = patchable(transformer(separate_qkv=separate_qkv), separate_qkv=separate_qkv)
    corrupt = ablated(model)
    with mixed_precision(model, PrecisionConfig(scale=scale)) as backend:
        backend.investigate((layer, 1))
        assert_edges_change_their_head_alone(model, corrupt, layer)


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_patching_an_edge_changes_its_head_alone_in_other_models(
    models: dict[str, PatchableModel], kind: str
) -> None:
    model = models[kind]
    corrupt = ablated(model)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, corrupt, 1)
    with patch_mode(model, corrupt, edges=[]):
        pass  # the models are shared: leave the masks at zero


def test_reading_the_first_head_for_all_would_be_noticed(
    model: PatchableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code reads head 0's split input for every head."""
    original = attention.project_heads

    def first_head_for_all(x: Tensor, master: Tensor, *rest: Any) -> Tensor:
        if x.shape[-1] == model.cfg.d_model:  # Q, K and V; z is d_head wide
            x = x[:, :, :1].expand_as(x)
        return original(x, master, *rest)

    corrupt = ablated(model)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, corrupt, 0)
        monkeypatch.setattr(attention, "project_heads", first_head_for_all)
        with pytest.raises(AssertionError):
            assert_edges_change_their_head_alone(model, corrupt, 0)


# What is high (defect 3) --------------------------------------------------------------------------


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


# Arithmetic (defects 2 and 4) ---------------------------------------------------------------------


@contextmanager
def transposed_weights(model: PatchableModel) -> Iterator[None]:
    """Every weight matrix of the blocks laid out column by column, as a transposed view."""
    weights = [p for n, p in model.named_parameters() if ".W_" in n and ".blocks." in n]
    contiguous = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.mT.contiguous().mT
    try:
        yield
    finally:
        for weight, data in zip(weights, contiguous, strict=True):
            weight.data = data


@pytest.mark.parametrize("low", LEAST_DB)
@pytest.mark.parametrize("shape", [{}, {"n_heads": 1, "d_head": 32, "d_mlp": 32}])
def test_transposed_weights_give_the_same_output(low: str, shape: dict[str, int]) -> None:
    """d_model is n_heads * d_head in both, so that a wrong matrix would have the right shape."""
    model = small_model(**shape)
    assert model.cfg.d_model == model.cfg.n_heads * model.cfg.d_head
    exact = logits(model, tokens())
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)) as backend:
        backend.investigate((1, 0))
        usual = logits(model, tokens())
        with transposed_weights(model):
            assert not model.blocks[0].attn.W_Q.is_contiguous()
            other = logits(model, tokens())
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-4)
    assert signal_to_noise(exact, usual) > LEAST_DB[low] - 10


@pytest.mark.parametrize("low", ["fp8_e4m3", "fp8_e5m2", "int8"])
def test_outputs_of_projections_have_more_than_8_bits(model: PatchableModel, low: str) -> None:
    names = [*attention_names(0), "blocks.0.attn.hook_result", "blocks.0.hook_mlp_out"]
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)):
        values = activations(model, names, tokens())
    for value in values.values():
        assert value.dtype == torch.float32
        assert len(value.unique()) > 2 * 256
        assert not torch.equal(value, get_format(low).round_trip(value))


def test_unscaled_values_are_rounded_but_their_products_are_not(model: PatchableModel) -> None:
    with mixed_precision(model, PrecisionConfig(scale="none")):
        value = activations(model, attention_names(0, "q"), tokens())["blocks.0.attn.hook_q"]
    plain = value - model.blocks[0].attn.b_Q
    assert not torch.equal(plain, get_format("fp8_e4m3").round_trip(plain))


def flushed_share(weight: Tensor, scale: Any) -> float:
    low = get_format("fp8_e4m3").quantise_weight(weight, scale)
    return float(((low.codes.float() == 0) & (weight != 0)).float().mean())


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O"])
def test_small_weights_vanish_only_without_scales(model: PatchableModel, name: str) -> None:
    """E4M3's least value is 2^-9. Weights of GPT-2's size, near 0.02, are within a few steps of it;
    scaled rows reach 448, some 10^5 times as much."""
    weight = getattr(model.blocks[0].attn, name)
    small = 0.02 * weight / weight.std()
    assert flushed_share(small, "none") > 0.03
    assert flushed_share(small, "row") < 1e-3


def test_unscaled_small_weights_cost_signal(model: PatchableModel) -> None:
    """The same through the backend: queries of small weights, with and without scales."""
    model.blocks[0].attn.W_Q.data.mul_(0.02)
    exact = without_bias(model, 0, activations(model, attention_names(0), tokens()))[0]
    noise = {}
    for scale in ("row", "none"):
        with mixed_precision(model, PrecisionConfig(scale=scale)):  # type: ignore[arg-type]
            mixed = without_bias(model, 0, activations(model, attention_names(0), tokens()))[0]
        noise[scale] = signal_to_noise(exact, mixed)
    assert noise["row"] > LEAST_DB["fp8_e4m3"] > noise["none"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_policy_is_fp32(models: dict[str, PatchableModel], kind: str) -> None:
    model = models[kind]
    exact = logits(model, tokens())
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, tokens()), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8(policy="uniform")):
        assert signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("changes", OTHER_KINDS, ids=lambda changes: next(iter(changes)))
def test_other_kinds_of_attention_and_mlp(changes: dict[str, Any]) -> None:
    """Each is the model's own in full precision, and near it in int8."""
    model = patchable(transformer(**changes))
    exact = logits(model, tokens())
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, tokens()), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8()):
        assert_edges_change_their_head_alone(model, ablated(model), 1)
        with patch_mode(model, ablated(model), edges=[]):
            assert 15 < signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_stay_near_fp32(models: dict[str, PatchableModel], kind: str, low: str) -> None:
    """Two layers and an MLP each add to the noise of one product."""
    model = models[kind]
    exact = logits(model, tokens())
    with mixed_precision(model, PrecisionConfig(low=low)):
        assert LEAST_DB[low] - 10 < signal_to_noise(exact, logits(model, tokens())) < MOST_DB


@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
def test_float64_models_stay_float64(low: str) -> None:
    model = small_model(dtype=torch.float64)
    names = attention_names(0)
    exact = activations(model, names, tokens())
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate((0, 1))
        mixed = activations(model, names, tokens())
        assert logits(model, tokens()).dtype == torch.float64
        assert_edges_change_their_head_alone(model, ablated(model), 0)
    for name in names:
        difference = (mixed[name] - exact[name])[:, :, 1].abs().max()
        assert float(difference) < 1e-13
        assert float((mixed[name] - exact[name])[:, :, 2].abs().max()) > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_random_architectures_run_in_every_policy(seed: int) -> None:
    model, batches = architectures.build(architectures.random_architecture(seed, max_edges=300))
    prompts = next(iter(batches)).clean
    exact = logits(model, prompts)
    for policy in POLICIES:
        with mixed_precision(model, PrecisionConfig(policy=policy)) as backend:
            backend.investigate(canonical_edges(model)[-1])
            mixed = logits(model, prompts)
        assert mixed.dtype == exact.dtype
        assert signal_to_noise(exact, mixed) > (90 if policy == "full" else 3)


# Lending and giving back --------------------------------------------------------------------------


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
    with pytest.raises(ModelError, match="no transformer"), mixed_precision(micro, int8()):
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


def test_the_default_precision_is_low_somewhere(model: PatchableModel) -> None:
    exact = logits(model, tokens())
    with mixed_precision(model) as backend:
        assert not backend.precision.is_exact
        assert signal_to_noise(exact, logits(model, tokens())) < MOST_DB


# Under the host -----------------------------------------------------------------------------------


def correlation(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    pairs = [torch.cat([scores[name].flatten() for name in sorted(first)]) for scores in (first, second)]
    assert all(bool(each.isfinite().all()) for each in pairs)
    return float(torch.corrcoef(torch.stack(pairs))[0, 1])


def patched(model: PatchableModel, corrupt: Tensor, edges: list[Any]) -> Tensor:
    with patch_mode(model, corrupt, edges=edges):
        return logits(model, tokens())


@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("seq_len", [None, 6])
@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
def test_patch_mode_runs_in_mixed_precision(separate_qkv: bool, seq_len: int | None, low: str) -> None:
    inner = transformer(separate_qkv=separate_qkv)
    model = patchable(inner, separate_qkv=separate_qkv, seq_len=seq_len)
    corrupt, edges = ablated(model), canonical_edges(model)[::5]
    exact, nothing = patched(model, corrupt, edges), patched(model, corrupt, [])
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate(edges[1])
        mixed = patched(model, corrupt, edges)
    assert LEAST_DB[low] - 10 < signal_to_noise(exact, mixed) < MOST_DB
    assert signal_to_noise(exact, nothing) < 6


def test_an_edge_of_one_position_changes_that_position_alone() -> None:
    model = patchable(transformer(), seq_len=6)
    corrupt, names = ablated(model), attention_names(0, "q")
    with mixed_precision(model, int8()):
        with patch_mode(model, corrupt, edges=[]):
            before = activations(model, names, tokens())[names[0]]
        with patch_mode(model, corrupt, edges=[model.edge_name_dict[4]["Resid Start->A0.2.Q"]]):
            after = activations(model, names, tokens())[names[0]]
    changed = (before != after).any(dim=0).any(dim=-1)  # [pos, head]
    assert changed.nonzero().tolist() == [[4, 2]]


def test_run_circuits_runs_in_mixed_precision(model: PatchableModel) -> None:
    scores = {
        name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, mask) in enumerate(sorted(model.patch_masks.items()))
    }
    counts = [0, 40, model.n_edges]

    def run() -> dict[int, Tensor]:
        outputs = run_circuits(model, loader(), counts, scores, PatchType.TREE_PATCH)
        return {count: next(iter(by_batch.values())) for count, by_batch in outputs.items()}

    exact = run()
    with mixed_precision(model, PrecisionConfig()):
        mixed = run()
    assert list(mixed) == list(exact) == counts
    for count in counts:
        assert 8 < signal_to_noise(exact[count], mixed[count]) < MOST_DB


def test_acdc_of_the_host_runs_in_mixed_precision() -> None:
    model = small_model(n_layers=1, n_heads=3)
    edge_count = model.n_edges
    with mixed_precision(model, PrecisionConfig(low="int8", mlp="bf16")):
        scores = acdc_prune_scores(model, loader(), None, tao_exps=[-2], tao_bases=[1])
    values = torch.cat([score.flatten() for score in scores.values()])
    assert len(values) == edge_count
    assert 0 < int(values.isinf().sum()) < edge_count
    assert set(values.tolist()) == {0.01, float("inf")} or len(set(values.tolist())) == 2


def host_gradients(model: PatchableModel) -> dict[str, Tensor]:
    return mask_gradient_prune_scores(
        model, loader(), None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
    )


@pytest.mark.parametrize("low", ["fp8_e4m3", "fp8_e5m2", "int8", "bf16"])
@pytest.mark.parametrize("seq_len", [None, 6])
def test_mask_gradients_follow_those_of_fp32(low: str, seq_len: int | None) -> None:
    model = patchable(transformer(), seq_len=seq_len)
    exact = host_gradients(model)
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)) as backend:
        assert correlation(exact, host_gradients(model)) > 0.9
        backend.investigate((0, 2))
        assert correlation(exact, host_gradients(model)) > 0.9


@pytest.mark.parametrize("size", [1e-4, 1e-8])
def test_tiny_gradients_arrive(model: PatchableModel, size: float) -> None:
    """A cast of the gradient to E4M3 would turn each into zero."""
    gradients = []
    for precision in (PrecisionConfig(policy="full"), PrecisionConfig()):
        residual = torch.zeros(2, 3, 32, requires_grad=True)
        with mixed_precision(model, precision):
            start = residual + activations(model, ["blocks.0.hook_resid_pre"], tokens(length=3))[
                "blocks.0.hook_resid_pre"
            ][:2]  # fmt: skip
            (size * model(start, start_at_layer=0)[:, -1, 3]).sum().backward()
        assert residual.grad is not None
        gradients.append(residual.grad)
    assert bool((gradients[1] != 0).all())
    assert float(torch.corrcoef(torch.stack([g.flatten() for g in gradients]))[0, 1]) > 0.9


def cached_model(prompts: Tensor, prefix: int) -> PatchableModel:
    """The model with a frozen cache of the first tokens, as the host's loader makes it."""
    inner = transformer(seed=3)
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", len(prompts))
    with torch.inference_mode():
        inner(prompts[:, :prefix], past_kv_cache=cache)
    cache.freeze()
    return patchable(inner, kv_caches=(cache,))


@pytest.mark.parametrize("prefix", [1, 3])
def test_caches_of_a_common_prefix_are_used(prefix: int) -> None:
    prompts = tokens()
    model = cached_model(prompts, prefix)
    assert model.kv_caches is not None
    keys = [entry.past_keys.clone() for entry in model.kv_caches[4].entries]
    rest = prompts[:, prefix:]
    exact = logits(model, rest)
    whole = logits(patchable(transformer(seed=3)), prompts)[:, prefix:]
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-4)
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, rest), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8()) as backend:
        backend.investigate((1, 1))
        first = logits(model, rest)
        assert torch.equal(logits(model, rest), first)
    assert LEAST_DB["int8"] - 10 < signal_to_noise(exact, first) < MOST_DB
    assert all(torch.equal(a.past_keys, b)
               for a, b in zip(model.kv_caches[4].entries, keys, strict=True))  # fmt: skip


def test_gradients_pass_with_caches() -> None:
    model = cached_model(tokens(), 2)
    corrupt = src_ablations(model, tokens(1)[:, 2:])
    mask = next(w.patch_mask for w in model.dest_wrappers if "1.hook_k" in w.module_name)
    gradients = []
    for precision in (int8(policy="full"), int8()):
        mask.requires_grad_(True)
        with mixed_precision(model, precision), patch_mode(model, corrupt.clone(), edges=[]):
            log_softmax(model(tokens()[:, 2:])[:, -1], dim=-1)[:, 5].sum().backward()
        assert mask.grad is not None
        gradients.append(mask.grad.flatten())
        mask.grad = None
    assert float(torch.corrcoef(torch.stack(gradients))[0, 1]) > 0.9
