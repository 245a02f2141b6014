"""Low copies of weights: never stale, made once, usable by autograd, small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pahq_plugin as pahq
from pahq_plugin.errors import FormatError
from pahq_plugin.precision import formats, weights
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import get_format
from pahq_plugin.precision.kernels import FP8
from pahq_plugin.precision.weights import LowWeights
from tests.helpers.rounded import TOLERANCE, WEIGHT_ONLY, off, rounded_weights
from tests.helpers.small import loader, logits, small_model, tokens

NAME = "blocks.0.attn.W_Q"
INT8 = get_format("int8")


def master(seed: int = 0) -> nn.Parameter:
    """A weight ``[head, d_in, d_out]``."""
    weight = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(weight, requires_grad=False)


def expected(weight: Tensor) -> Tensor:
    return INT8.quantise_weight(weight.detach(), "row").dequantise()


def write_through_data(weight: nn.Parameter) -> nn.Parameter:
    weight.data[1, 2, 3] = 7.0
    return weight


def write_in_place(weight: nn.Parameter) -> nn.Parameter:
    with torch.no_grad():
        weight.mul_(torch.linspace(0.5, 2, 8)[:, None])
    return weight


def swap_rows(weight: nn.Parameter) -> nn.Parameter:
    weight.data = weight.data[:, [1, 0, *range(2, 8)]]
    return weight


def swap_columns(weight: nn.Parameter) -> nn.Parameter:
    weight.data = weight.data[:, :, [0, 1, 3, 2, 4]]
    return weight


def swap_heads(weight: nn.Parameter) -> nn.Parameter:
    weight.data = weight.data[[2, 1, 0]]
    return weight


def swap_two_entries(weight: nn.Parameter) -> nn.Parameter:
    weight.data[0, 0, 0], weight.data[2, 3, 4] = float(weight[2, 3, 4]), float(weight[0, 0, 0])
    return weight


def change_a_sign(weight: nn.Parameter) -> nn.Parameter:
    weight.data[2, 7, 4] *= -1
    return weight


def replace(weight: nn.Parameter) -> nn.Parameter:
    return master(seed=1)


CHANGES = [
    write_through_data,
    write_in_place,
    swap_rows,
    swap_columns,
    swap_heads,
    swap_two_entries,
    change_a_sign,
    replace,
]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_follow_their_master(change: Callable[[nn.Parameter], nn.Parameter]) -> None:
    weight, copies = master(), LowWeights("row")
    before = copies.get(NAME, weight, INT8).dequantise()
    weight = change(weight)
    after = copies.get(NAME, weight, INT8).dequantise()
    assert not torch.equal(before, after)
    assert torch.equal(after, expected(weight))


@pytest.mark.parametrize("change", CHANGES)
def test_the_lent_model_sees_new_weights(
    change: Callable[[nn.Parameter], nn.Parameter],
) -> None:
    """The same through the backend: the output is that of a model lent after the change."""
    model, prompts = small_model(d_model=8, d_head=5, n_heads=3), tokens()
    precision = PrecisionConfig(low="int8", mlp="int8")
    attention = model.blocks[0].attn
    with mixed_precision(model, precision):
        before = logits(model, prompts)
        attention.W_Q = change(attention.W_Q)
        after = logits(model, prompts)
    with mixed_precision(model, precision):
        fresh = logits(model, prompts)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True),
    columns=st.lists(st.integers(0, 4), min_size=2, max_size=2, unique=True),
    head=st.integers(0, 2),
)
def test_changes_that_keep_the_sums_of_rows_and_columns_are_seen(
    rows: list[int], columns: list[int], head: int
) -> None:
    """Moving ones about in a pattern ``[[1, 0], [0, 1]]`` leaves every row and column sum alone."""
    weight, copies = nn.Parameter(torch.zeros(3, 8, 5), requires_grad=False), LowWeights("row")
    (top, bottom), (left, right) = rows, columns
    weight.data[head, top, left] = weight.data[head, bottom, right] = 1.0
    copies.get(NAME, weight, INT8)
    weight.data.zero_()
    weight.data[head, top, right] = weight.data[head, bottom, left] = 1.0
    assert torch.equal(copies.get(NAME, weight, INT8).dequantise(), expected(weight))


def test_another_permutation_matrix_is_another_weight() -> None:
    """Compiled models have such weights."""
    copies, order = LowWeights("row"), [1, 2, 0, 3, 4]
    weight = nn.Parameter(torch.eye(5), requires_grad=False)
    copies.get(NAME, weight, INT8)
    weight.data = torch.eye(5)[order]
    assert torch.equal(copies.get(NAME, weight, INT8).dequantise(), torch.eye(5)[order])


def test_nothing_is_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = formats.NumberFormat.quantise_weight

    def count(self: formats.NumberFormat, weight: Tensor, granularity: formats.Granularity):
        made.append(self.name)
        return original(self, weight, granularity)

    monkeypatch.setattr(formats.NumberFormat, "quantise_weight", count)
    weight, copies = master(), LowWeights("row")
    first = copies.get(NAME, weight, INT8)
    assert copies.get(NAME, weight, INT8) is first
    assert copies.get(NAME, nn.Parameter(weight.clone()), INT8) is first
    assert made == ["int8"]
    copies.get(NAME, weight, get_format("fp8_e4m3"))
    copies.get("blocks.1.attn.W_Q", weight, INT8)
    assert copies.get(NAME, weight, INT8) is first
    assert made == ["int8", "fp8_e4m3", "int8"]


def test_a_second_forward_makes_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = small_model(), tokens()
    with mixed_precision(model, PrecisionConfig(low="int8", mlp="int8")) as backend:
        first = logits(model, prompts)
        monkeypatch.setattr(formats.NumberFormat, "quantise_weight", lambda *_: pytest.fail("made"))
        backend.investigate((0, 1))
        logits(model, prompts)
        backend.investigate(None)
        assert torch.equal(logits(model, prompts), first)


def test_copies_from_inference_mode_serve_autograd() -> None:
    weight, copies = master(), LowWeights("row")
    with torch.inference_mode():
        low = copies.get(NAME, weight, INT8)
    assert not low.codes.is_inference() and not low.scale.is_inference()
    x = torch.ones(3, 2, 8, requires_grad=True)
    (x * x @ low.dequantise()).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_masters_from_inference_mode_serve_autograd() -> None:
    with torch.inference_mode():
        weight = torch.randn(3, 8, 5)
    assert not LowWeights("row").get(NAME, weight, INT8).codes.is_inference()


def test_copies_do_not_share_memory_with_their_master() -> None:
    weight = master()
    low = LowWeights("none").get(NAME, weight, get_format("fp32"))
    assert low.codes.data_ptr() != weight.data_ptr()


def test_a_weight_with_nan_is_refused() -> None:
    weight, copies = master(), LowWeights("row")
    copies.get(NAME, weight, INT8)
    weight.data[0, 0, 0] = float("nan")
    with pytest.raises(FormatError):
        copies.get(NAME, weight, INT8)


@pytest.mark.parametrize("low", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("kind", ["layer_norm", "rotary_gated"])
def test_copies_take_at_most_35_percent(low: str, kind: str) -> None:
    """One byte instead of four, and four more for each column of a matrix."""
    model = small_model(kind)
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)) as backend:
        assert backend.low_bytes == 0
        logits(model, tokens())
        copies = backend.low_bytes
    whole = sum(
        parameter.nbytes
        for name, parameter in model.wrapped_model.named_parameters()
        if ".W_" in name and name.startswith("blocks.")
    )
    assert 0.25 * whole < copies <= 0.35 * whole


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 16, 32), (40, 17), (32, 16)])
def test_a_packed_copy_is_in_memory_once(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FP8 kernel wants weights padded and column by column; what it lays out runs on any device."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = LowWeights("row").get(NAME, weight, get_format("fp8_e4m3"))
    monkeypatch.setattr(weights, "kernel_for", lambda *_: FP8)
    copies = LowWeights("row")
    copy = copies.get(NAME, weight, get_format("fp8_e4m3"))
    assert copy.packed is not None
    assert copy.codes.untyped_storage().data_ptr() == copy.packed.untyped_storage().data_ptr()
    assert copy.codes.float().equal(plain.codes.float()) and copy.scale.equal(plain.scale)
    assert not copy.packed[..., shape[-2] :, :].float().any()
    assert not copy.packed[..., shape[-1] :].float().any()
    assert copies.nbytes == copy.packed.untyped_storage().nbytes() + copy.scale.nbytes


@pytest.mark.parametrize("precision", WEIGHT_ONLY, ids=lambda p: f"{p.low}-{p.mlp}-{p.scale}")
def test_the_backend_rounds_weights_only(precision: pahq.PrecisionConfig) -> None:
    model, batch = small_model(), next(iter(loader()))
    with pahq.mixed_precision(model, precision) as backend, torch.no_grad():
        for head in (None, (0, 1), (1, 3)):
            backend.investigate(head)
            ours = model(batch.clean)
            with rounded_weights(model, precision, head):
                backend.investigate(None)
                with backend.own_precision():
                    theirs = model(batch.clean)
            assert off(ours.numpy(), theirs) <= TOLERANCE
