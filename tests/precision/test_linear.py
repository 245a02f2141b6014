"""Products with weights: each head its own input and precision; gradients pass straight through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pahq_plugin.precision.formats import Quantised, get_format
from pahq_plugin.precision.linear import high_product, low_product, project_heads

LOW = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8"]
HEADS, D_IN, D_OUT = 4, 16, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_weight(weight: Tensor, name: str) -> Quantised:
    return get_format(name).quantise_weight(weight.detach(), "row")


def project(x: Tensor, weight: Tensor, name: str, high: tuple[int, ...] = ()) -> Tensor:
    return project_heads(x, weight, low_weight(weight, name), high, get_format(name), "row")


def exact(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's product in FP64, ``[batch, pos, head, d_out]``."""
    return torch.einsum("bphi,hio->bpho", x.double(), weight.double())


def rounded(x: Tensor, name: str) -> Tensor:
    """Activations as the format holds them, in FP64."""
    return get_format(name).quantise_activation(x.detach(), "row").dequantise().double()


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("size", [1e-4, 1e-7, 1.0])
def test_gradients_are_those_of_the_dequantised_operands(name: str, size: float) -> None:
    """A plain cast would flush a gradient of 1e-4 to zero in E4M3."""
    x, weight = normal(3, 5, D_IN).requires_grad_(), normal(D_IN, D_OUT, seed=1).requires_grad_()
    grad = size * normal(3, 5, D_OUT, seed=2)
    low = low_weight(weight, name)
    low_product(x, weight, low, get_format(name), "row").backward(grad)
    assert x.grad is not None and weight.grad is not None
    wanted_x = grad.double() @ low.dequantise().double().T
    wanted_weight = torch.einsum("bpi,bpo->io", rounded(x, name), grad.double())
    torch.testing.assert_close(x.grad.double(), wanted_x, rtol=1e-4, atol=1e-5 * size)
    torch.testing.assert_close(weight.grad.double(), wanted_weight, rtol=1e-4, atol=1e-5 * size)
    assert bool((x.grad != 0).all()) and bool((weight.grad != 0).all())


@pytest.mark.parametrize("name", LOW)
def test_gradients_of_heads_low_and_high(name: str) -> None:
    x = normal(2, 3, HEADS, D_IN).requires_grad_()
    weight = normal(HEADS, D_IN, D_OUT, seed=1).requires_grad_()
    grad = 1e-4 * normal(2, 3, HEADS, D_OUT, seed=2)
    project(x, weight, name, high=(2,)).backward(grad)
    operand_x, operand_weight = rounded(x, name), low_weight(weight, name).dequantise().double()
    operand_x[:, :, 2], operand_weight[2] = (
        x.detach()[:, :, 2].double(),
        weight.detach()[2].double(),
    )
    assert x.grad is not None and weight.grad is not None
    wanted_x = torch.einsum("bpho,hio->bphi", grad.double(), operand_weight)
    wanted_weight = torch.einsum("bphi,bpho->hio", operand_x, grad.double())
    torch.testing.assert_close(x.grad.double(), wanted_x, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(weight.grad.double(), wanted_weight, rtol=1e-4, atol=1e-9)


def test_gradients_keep_the_dtype_of_what_they_belong_to() -> None:
    x = normal(3, D_IN).bfloat16().requires_grad_()
    weight = normal(D_IN, D_OUT).bfloat16().requires_grad_()
    out = low_product(x, weight, low_weight(weight, "int8"), get_format("int8"), "row")
    assert out.dtype == torch.float32
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, weight = normal(3, D_IN).requires_grad_(), normal(D_IN, D_OUT)
    low_product(x, weight, low_weight(weight, "int8"), get_format("int8"), "row").sum().backward()
    assert x.grad is not None and weight.grad is None


# Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("granularity", ["row", "head", "none"])
@pytest.mark.parametrize("head", range(HEADS))
def test_each_head_reads_its_own_input(name: str, granularity: str, head: int) -> None:
    x, weight = normal(2, 3, HEADS, D_IN), normal(HEADS, D_IN, D_OUT, seed=1)
    low = get_format(name).quantise_weight(weight, granularity)  # type: ignore[arg-type]
    disturbed = x.clone()
    disturbed[:, :, head] += normal(2, 3, D_IN, seed=3)
    before, after = (
        project_heads(each, weight, low, (), get_format(name), granularity)  # type: ignore[arg-type]
        for each in (x, disturbed)
    )
    same = [bool((before[:, :, h] == after[:, :, h]).all()) for h in range(HEADS)]
    assert same == [h != head for h in range(HEADS)]


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("high", [(), (0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_high_heads_are_exact_and_the_others_low(name: str, high: tuple[int, ...]) -> None:
    x, weight = normal(2, 3, HEADS, D_IN), normal(HEADS, D_IN, D_OUT, seed=1)
    out, wanted = project(x, weight, name, high), exact(x, weight)
    operands = exact(rounded(x, name), low_weight(weight, name).dequantise())
    for head in range(HEADS):
        reference = wanted if head in high else operands
        torch.testing.assert_close(out[:, :, head].double(), reference[:, :, head], rtol=1e-5, atol=1e-5)
        assert (head in high) == torch.allclose(
            out[:, :, head].double(), wanted[:, :, head], rtol=1e-6, atol=1e-5
        )


def test_without_a_low_copy_everything_is_high() -> None:
    x, weight = normal(2, 3, HEADS, D_IN), normal(HEADS, D_IN, D_OUT, seed=1)
    out = project_heads(x, weight, None, (), get_format("int8"), "row")
    torch.testing.assert_close(out.double(), exact(x, weight), rtol=1e-5, atol=1e-5)


def test_high_is_at_least_fp32() -> None:
    assert high_product(normal(2, 3).bfloat16(), normal(3, 4).bfloat16()).dtype == torch.float32
    assert high_product(normal(2, 3).double(), normal(3, 4).double()).dtype == torch.float64


def test_an_empty_batch_passes() -> None:
    x, weight = torch.zeros(0, 3, HEADS, D_IN), normal(HEADS, D_IN, D_OUT)
    assert project(x, weight, "fp8_e4m3", high=(1,)).shape == (0, 3, HEADS, D_OUT)


# Strides ------------------------------------------------------------------------------------------


def transposed(weight: Tensor) -> Tensor:
    return weight.mT.contiguous().mT


def every_second(weight: Tensor) -> Tensor:
    return weight.repeat_interleave(2, dim=-1)[..., ::2]


def heads_inside(weight: Tensor) -> Tensor:
    """Heads next to each other in memory, as in a fused ``[d_in, head * d_out]``."""
    return weight.movedim(0, 1).contiguous().movedim(0, 1)


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("d_out", [D_OUT, D_IN])
@pytest.mark.parametrize("layout", [transposed, every_second, heads_inside])
def test_strides_of_a_weight_do_not_matter(
    name: str, d_out: int, layout: Callable[[Tensor], Tensor]
) -> None:
    """A kernel that takes a transposed view for a contiguous one multiplies by the wrong matrix,
    unnoticed where it is square."""
    x, weight = normal(2, 3, HEADS, D_IN), normal(HEADS, D_IN, d_out, seed=1)
    view = layout(weight)
    assert not view.is_contiguous() and torch.equal(view, weight)
    out = project(x, view, name, high=(1,))
    torch.testing.assert_close(out, project(x, weight, name, high=(1,)), rtol=1e-6, atol=1e-6)
    wrong = exact(rounded(x, name), weight.mT) if d_out == D_IN else None
    assert wrong is None or not torch.allclose(out.double(), wrong, rtol=0.3, atol=0.3)


def test_strides_of_the_input_do_not_matter() -> None:
    x, weight = normal(2, 3, HEADS, D_IN), normal(HEADS, D_IN, D_OUT, seed=1)
    view = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.testing.assert_close(
        project(view, weight, "int8"), project(x, weight, "int8"), rtol=1e-6, atol=1e-6
    )
