"""Many discoveries in one process leave nothing behind: no memory, hooks, threads or files (F6)."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import pahq_plugin as pahq
from pahq_plugin.discovery.discover import discover
from pahq_plugin.system.memory import release_unused
from tests.helpers.small import loader, small_model

WAYS = [
    {"method": "pahq"},
    {"method": "acdc"},
    {"method": "pahq", "engine": "host"},
    {"method": "pahq-paper", "ablation": "zero"},
    {"method": "eactp"},
    {"method": "eap"},
    {"method": "eap-ig"},
    {"method": "pahq", "checkpoint": "c"},
]


def resident() -> int:
    """Resident bytes of this process, once what is free has been given back."""
    gc.collect()
    release_unused()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hooks(model: nn.Module) -> int:
    """Hooks of all modules together."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def discoveries(count: int, folder: Path) -> None:
    """``count`` of them, in all `WAYS` in turn, on one model; the process is afterwards as before."""
    model, prompts = small_model(), loader()
    discover(model, prompts, method="eap", progress=False)  # tqdm's monitor is a thread that stays
    before = hooks(model), threading.active_count(), len(os.listdir("/proc/self/fd"))
    for turn in range(count):
        way = dict(WAYS[turn % len(WAYS)])
        if "checkpoint" in way:
            way["checkpoint"] = str(folder / f"{turn}")
        if way["method"] not in ("eactp", "eap", "eap-ig"):
            way["threshold"] = 0.003 * (1 + turn % 5)  # type: ignore[assignment]
        assert discover(model, prompts, progress=False, **way).decisions  # type: ignore[arg-type]
        if "checkpoint" in way:
            Path(str(way["checkpoint"])).unlink()
    assert (hooks(model), threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    assert not os.listdir(folder)


def growth(warm_up: int, count: int, folder: Path) -> float:
    """Share by which resident memory grows over ``count`` discoveries after a warm-up."""
    discoveries(warm_up, folder)
    start = resident()
    discoveries(count, folder)
    return resident() / start - 1


def test_some_discoveries(tmp_path: Path) -> None:
    assert growth(14, 21, tmp_path) < 0.01


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_thousand_discoveries(tmp_path: Path) -> None:
    grown = growth(200, 2000, tmp_path)
    print(f"memory grew by {grown:.3%}")
    assert grown < 0.01


def test_contexts_entered_and_left_many_times() -> None:
    model, prompts = small_model(), next(iter(loader())).clean
    before = hooks(model)
    with torch.inference_mode():
        expected = model(prompts)
        for _ in range(50):
            with pahq.mixed_precision(model, pahq.PrecisionConfig(low="int8", mlp="int8")):
                model(prompts)
        assert torch.equal(model(prompts), expected)
    assert hooks(model) == before
