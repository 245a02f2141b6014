"""What an application has set around a search: it changes nothing or is refused, and stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import mask_fn_mode, patch_mode
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.config import FULL_PRECISION
from pahq_plugin.distributed import World
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import AblationType
from pahq_plugin.host.model import borrowed
from pahq_plugin.metrics import kl_div
from pahq_plugin.searching import SearchTask, plan_search
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


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
    [(patched, "patch_mode"), (lambda model: mask_fn_mode(model, "sigmoid"), "mask_fn_mode")],
)
def test_the_hosts_patching_blocks_are_refused(
    block: Callable[[PatchableModel], AbstractContextManager[Any]], name: str, method: str
) -> None:
    model = small_model()
    message = f"the model is in a {name} block; leave that first"
    with block(model), refused(ConfigError, message):
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
    message = "another thread searches or evaluates this model; give each thread a copy.deepcopy of it"
    try:
        with refused(ConfigError, message):
            discover(model, loader(), method="acdc")
        said.append(discover(small_model(), loader(), method="acdc"))  # a model of its own
    finally:
        met.wait(60)
        thread.join()
    assert discover(model, loader(), method="acdc").circuit == said[0].circuit


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_with_uneven_shares_have_one_plan(size: int) -> None:
    """Passes of the same rows: they wait for each other at every one."""
    model, prompts = small_model(), [next(iter(loader(prompts=5)))]
    plans = set()
    for rank in range(size):
        world = World(rank, size)
        task = SearchTask(
            model, loader(), [world.share_of(batch) for batch in prompts], AblationType.RESAMPLE,
            ("kl_div", kl_div), world, prompts,
        )  # fmt: skip
        plans.add(plan_search(task, "auto", FULL_PRECISION, 25_000_000)[0])
    assert len(plans) == 1
