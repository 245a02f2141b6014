"""What an application has set around a search: it changes nothing or is refused, and stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import mask_fn_mode, patch_mode, set_mask_batch_size
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.errors import ConfigError, GraphError, ModelError
from pahq_plugin.host import AblationType, Edge
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.results.result import Discovery
from pahq_plugin.system.torch_state import own_arithmetic
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, patchable, small_model, transformer


def effects(result: Discovery) -> list[tuple[Edge, float]]:
    return [(decision.edge, decision.effect) for decision in result.decisions]


@contextmanager
def short_cuts() -> Any:
    """FP32 products may be TF32 or BF16, as `torch.set_float32_matmul_precision` allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "short cuts": short_cuts,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("engine", ["incremental", "host"])
@pytest.mark.parametrize("around", AROUND)
def test_decisions_are_the_same_bits(around: str, engine: str) -> None:
    model, settings = small_model(), {"method": "acdc", "threshold": 0.001, "engine": engine}
    plain = discover(model, loader(), **settings)
    with AROUND[around]():
        inside = discover(model, loader(), **settings)
    assert [(d.edge, d.effect) for d in inside.decisions] == [
        (d.edge, d.effect) for d in plain.decisions
    ]


def test_inside_no_short_cut_is_allowed() -> None:
    model = small_model()
    with short_cuts(), torch.autocast("cpu"), borrowed(model):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert not torch.is_autocast_enabled("cpu")


def patched(model: PatchableModel) -> AbstractContextManager[Any]:
    batch = next(iter(loader()))
    return patch_mode(model, src_ablations(model, batch.corrupt, AblationType.RESAMPLE), [])


@pytest.mark.parametrize("method", ["acdc", "pahq", "eap"])
@pytest.mark.parametrize(
    ("block", "name"),
    [
        (patched, "patch_mode"),
        (lambda model: mask_fn_mode(model, "sigmoid"), "mask_fn_mode"),
        (lambda model: set_mask_batch_size(model, 8), "set_mask_batch_size"),
    ],
)
def test_the_hosts_patching_blocks_are_refused(
    block: Callable[[PatchableModel], AbstractContextManager[Any]], name: str, method: str
) -> None:
    model = small_model()
    with block(model), refused(ConfigError, name):
        discover(model, loader(), method=method)
    discover(model, loader(), method=method, n_edges=3 if method == "eap" else None)


def test_a_model_is_in_one_thread_at_a_time() -> None:
    model, met, said = small_model(), threading.Barrier(2), []

    def other() -> None:
        with borrowed(model):
            met.wait(60)
            met.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    met.wait(60)
    try:
        with refused(ConfigError, "thread"):
            discover(model, loader(), method="acdc")
        said.append(discover(small_model(), loader(), method="acdc"))  # a model of its own
    finally:
        met.wait(60)
        thread.join()
    assert discover(model, loader(), method="acdc").circuit == said[0].circuit


def test_switches_are_put_back_by_the_last_thread() -> None:
    """Also where the first one to come in is the first one to leave."""
    inside, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with own_arithmetic():
            inside.set()
            may_leave.wait(60)

    thread = threading.Thread(target=other)
    with short_cuts():
        with own_arithmetic():
            thread.start()
            inside.wait(60)
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        may_leave.set()
        thread.join()


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
def test_gradients_are_taken_where_none_are_wanted(around: Any, method: str) -> None:
    model = small_model()
    prompts = loader()
    plain = discover(model, prompts, method=method)
    with around():
        inside = discover(model, prompts, method=method)
    assert [(d.edge, d.effect) for d in inside.decisions] == [
        (d.edge, d.effect) for d in plain.decisions
    ]


def test_an_interrupted_patch_mode_leaves_nothing_behind() -> None:
    """The host sets its flags before it takes care to unset them."""
    model = small_model()
    with pytest.raises(KeyboardInterrupt), borrowed(model):
        for wrapper in model.wrappers:
            wrapper.patch_mode = True
        raise KeyboardInterrupt
    assert not any(wrapper.patch_mode for wrapper in model.wrappers)


def test_orders_that_can_be_gone_through_once() -> None:
    model = small_model()
    order = canonical_edges(model)
    expected = discover(model, loader(), method="acdc", threshold=0.01, order=order[::-1])
    for once in (reversed(order), iter(order[::-1]), (edge for edge in order[::-1])):
        result = discover(model, loader(), method="acdc", threshold=0.01, order=once)  # type: ignore[arg-type]
        assert result.circuit == expected.circuit and len(result.decisions) == len(order)
    with refused(GraphError, "int"):
        discover(model, loader(), method="acdc", order=5)  # type: ignore[arg-type]
    assert isinstance(model.edges, set)  # in an order that depends on the hash seed
    with refused(GraphError, "set"):
        discover(model, loader(), method="acdc", order=model.edges)  # type: ignore[arg-type]


def changed_configuration(name: str, value: Any) -> PatchableModel:
    model = small_model()
    setattr(model.cfg, name, value)
    return model


def one_attention() -> PatchableModel:
    model = transformer()
    model.blocks[1].attn = model.blocks[0].attn
    return patchable(model)


def made_in_inference_mode() -> PatchableModel:
    with torch.inference_mode():
        return small_model()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: changed_configuration("n_layers", 1), "n_layers=1"),
        (lambda: changed_configuration("attn_only", True), "attn_only=True"),
        (lambda: changed_configuration("d_vocab_out", 1), "d_vocab_out=1"),
        (lambda: changed_configuration("n_heads", 2), "n_heads=2"),
        (lambda: changed_configuration("parallel_attn_mlp", True), "parallel_attn_mlp=True"),
        (lambda: small_model().double(), "torch.float64"),
        (one_attention, "attention module"),
        (lambda: small_model().bfloat16(), "torch.bfloat16"),
        (made_in_inference_mode, "inference_mode"),
    ],
)
@pytest.mark.parametrize("method", ["acdc", "pahq", "eap"])
def test_models_that_were_changed_after_they_were_made(
    make: Callable[[], PatchableModel], word: str, method: str
) -> None:
    with refused(ModelError, word):
        discover(make(), loader(), method=method)
