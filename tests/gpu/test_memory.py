"""Memory of a GPU: a budget is kept, a shortage is survived, nothing is left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from transformer_lens import HookedTransformer, HookedTransformerConfig

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError
from tests.helpers.gpu import DEVICE, family_on_gpu, free_memory, moved, prompts_on_gpu, taken
from tests.helpers.searches import discover
from tests.helpers.small import loader as small_loader
from tests.helpers.small import small_model

LAYERS, WIDTH, WORDS, LENGTH, PROMPTS = 16, 768, 300, 12, 8


def large_model(device: str = "cpu") -> HookedTransformer:
    """Of 455 MB."""
    config = HookedTransformerConfig(
        n_layers=LAYERS, n_heads=4, d_model=WIDTH, d_head=WIDTH // 4, d_mlp=4 * WIDTH, n_ctx=LENGTH,
        d_vocab=WORDS, act_fn="gelu", normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.8 / WIDTH**0.5, generator=generator)
    return model.to(device)  # type: ignore[return-value]


def large_loader() -> Any:
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(WORDS, (PROMPTS, LENGTH), generator=generator) for _ in range(2))
    answers = [torch.tensor([0])] * PROMPTS
    dataset = PromptDataset(clean, corrupt, answers, answers)
    return moved(PromptDataLoader(dataset, seq_len=LENGTH, diverge_idx=0, batch_size=PROMPTS))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_a_model_twice_as_large_as_the_budget(method: str, stored: bool, tmp_path: Path) -> None:
    """From pinned host memory, or from its files: same decisions, the allocator's peak within 5 %."""
    loader, source = large_loader(), large_model()
    weights = sum(p.nbytes for p in source.parameters())
    settings: dict[str, Any] = {"method": method, "threshold": 2e-3}
    whole = discover(pahq.adapt(large_model(DEVICE)), loader, **settings)
    if stored:
        pahq.save_model(source, tmp_path)
        source = pahq.open_model(tmp_path)
    model = pahq.adapt(source)
    gc.collect()
    free_memory()
    before = torch.cuda.memory_allocated()
    small = discover(model, loader, max_memory=weights // 2, **settings)
    peak = torch.cuda.max_memory_allocated() - before
    assert taken(small) == taken(whole) and 0 < len(small.circuit) < len(small.decisions) / 2
    print(peak / (weights // 2), small.stats)
    assert small.stats.memory["moved"] > 0
    assert small.stats.memory["peak"] <= 1.05 * (weights // 2), small.stats
    assert peak <= 1.05 * (weights // 2)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_model_on_the_gpu_within_a_budget_is_given_back() -> None:
    model, loader = family_on_gpu("llama-3"), prompts_on_gpu()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    whole = discover(model, loader, method="acdc")
    small = discover(model, loader, method="acdc", max_memory="3.5GB")
    assert taken(whole) == taken(small)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1])
        assert parameter.device.type == DEVICE


@pytest.fixture
def _short_of_memory() -> Iterator[None]:
    """This process may have 64 MB more of the GPU than it holds at present."""
    gc.collect()
    free_memory()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64e6) / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_real_shortage_halves_the_passes(request: pytest.FixtureRequest, caplog: Any) -> None:
    model, loader = pahq.adapt(large_model(DEVICE)), large_loader()
    expected = discover(model, loader, method="acdc", threshold=2e-3)
    request.getfixturevalue("_short_of_memory")
    with caplog.at_level("WARNING"):
        found = discover(model, loader, method="acdc", threshold=2e-3)
    assert taken(found) == taken(expected)
    assert "out of memory: passes of at most" in caplog.text


def test_two_hundred_searches_leave_nothing() -> None:
    model, loader = family_on_gpu("gpt2"), prompts_on_gpu()
    held = []
    for i in range(200):
        discover(model, loader, method=("pahq", "acdc")[i % 2], threshold=0.003)
        if i % 50 == 49:
            gc.collect()
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_allocated())
    assert max(held[1:]) <= held[0] * 1.01, held


def test_masters_come_back_from_host_memory() -> None:
    problem = pahq.load_problem("greater-than")
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    discover(problem.model, problem.train_loader, method="rtn-q", threshold=1e-2)
    for name, parameter in problem.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.device.type == DEVICE


def test_prompts_and_model_apart_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="the model is on cpu, the prompts are on cuda"):
        discover(small_model(), moved(small_loader()))
