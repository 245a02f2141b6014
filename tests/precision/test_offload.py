"""FP32 weights in host memory while a model is lent: they come back, and nothing depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.precision.config import PAPER_PRECISION, RTN_PRECISION, PrecisionConfig
from pahq_plugin.precision.offload import Masters
from pahq_plugin.precision.streams import INLINE
from tests.helpers.small import LENGTH, VOCABULARY, patchable, small_model, transformer

PROMPTS = torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def precision(**changes: Any) -> PrecisionConfig:
    return PrecisionConfig(**{"low": "int8", "mlp": "int8", **changes})


def weights_with_sizes(model: Any) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.wrapped_model.named_parameters()}


def test_weights_come_back_bit_for_bit() -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 4, 5))
    before = parameter.detach().clone()
    masters = Masters(INLINE)
    masters.move_away([("W", parameter)])
    assert masters.is_away("W") and parameter.numel() == 0
    assert masters.get("W", parameter).equal(before)
    assert masters.get("W", parameter, (2, 0)).equal(before[[2, 0]])
    masters.bring_back()
    assert parameter.equal(before) and not masters.is_away("W")


def test_only_wanted_slices_stay_on_the_device() -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 4, 5))
    masters = Masters(INLINE)
    masters.move_away([("W", parameter)])
    masters.keep_only([("W", (1,)), ("other", None)])
    first = masters.get("W", parameter, (1,))
    masters.keep_only([("W", (1,))])
    assert masters.get("W", parameter, (1,)) is first
    masters.keep_only([("W", (0,))])
    assert masters.get("W", parameter, (1,)) is not first


@pytest.mark.parametrize("policy", ["investigated_head", "investigated_path", "uniform"])
@pytest.mark.parametrize("parts", [("qkv", "output"), ("output", "unembed")])
def test_logits_do_not_depend_on_where_masters_are(policy: Any, parts: Any) -> None:
    model = small_model()
    edges = sorted(model.edges, key=lambda edge: edge.name)[::37]

    def logits(where: Any) -> list[torch.Tensor]:
        with pahq.mixed_precision(model, precision(policy=policy, parts=parts, masters=where)) as lent:
            found = []
            for edge in edges:
                lent.investigate(edge)
                with torch.no_grad():
                    found.append(model(PROMPTS))
            return found

    for here, away in zip(logits("device"), logits("host"), strict=True):
        assert here.equal(away)


def test_low_parts_are_empty_inside_and_back_outside() -> None:
    model = small_model()
    sizes = weights_with_sizes(model)
    contents = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with pahq.mixed_precision(model, precision(masters="host")):
            inside = weights_with_sizes(model)
            assert {name for name in sizes if inside[name] == 0} == {
                name for name in sizes if name.endswith(("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"))
            }
            raise KeyboardInterrupt
    assert weights_with_sizes(model) == sizes
    assert all(p.equal(contents[name]) for name, p in model.named_parameters())


def test_own_precision_inside_the_block_has_its_weights() -> None:
    model = small_model()
    with torch.no_grad():
        exact = model(PROMPTS)
        with pahq.mixed_precision(model, precision(masters="host")) as lent:
            low = model(PROMPTS)
            with lent.own_precision():
                assert model(PROMPTS).equal(exact)
            assert model(PROMPTS).equal(low)


@pytest.mark.parametrize("method", ["pahq-paper", "rtn-q"])
def test_auto_leaves_masters_of_a_cpu_where_they_are(method: str) -> None:
    model = small_model()
    used = {"pahq-paper": PAPER_PRECISION, "rtn-q": RTN_PRECISION}[method]
    sizes = weights_with_sizes(model)
    with pahq.mixed_precision(model, used):
        assert weights_with_sizes(model) == sizes


def test_a_weight_under_two_names_is_moved_once() -> None:
    """Blocks may share parameters."""
    inner = transformer()
    inner.blocks[1].attn.W_Q = inner.blocks[0].attn.W_Q
    model = patchable(inner)
    shared = model.blocks[0].attn.W_Q
    before = shared.detach().clone()
    found = []
    for where in ("device", "host"):
        with pahq.mixed_precision(model, precision(masters=where)) as lent, torch.inference_mode():
            lent.investigate((1, 2))
            found.append(model(PROMPTS))
        assert model.blocks[1].attn.W_Q is model.blocks[0].attn.W_Q is shared
        assert torch.equal(shared, before)
    assert torch.equal(*found)
