"""Searches whose weights and caches come and go, against the same searches in memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.engines.incremental.budget import budget_for
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.placement import place
from pahq_plugin.engines.placement.place import placed
from pahq_plugin.engines.placement.plan import Plan, plan_memory, units_of
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.models.checks import weight_parameters
from tests.helpers.architectures import build, random_architecture
from tests.helpers.families import FAMILIES, family_loader, family_model

CPU = torch.device("cpu")


def nothing_stays(model: Any, prompts: Any) -> Plan:
    """A plan by which every weight and cache comes and goes, two attention layers or MLPs at a time."""
    plan = plan_memory(model, prompts, 10**12, None, budget_for(CPU).together)
    largest = max(unit.nbytes for unit in units_of(model))
    return replace(plan, stay=frozenset(), window=2 * largest, caches_stay=False)


def effects(
    model: Any, loader: Any, ablation: AblationType, plan: Plan | None, copies: bool, low: bool
) -> list[float]:
    """Effects of groups of candidates, every third of which is removed."""
    prompts = collect_batches(model, loader, None)
    metric = resolve_metric(None, model.cfg.d_vocab_out)
    precision = pahq.PrecisionConfig(low="int8", mlp="int8", kernel="eager") if low else None
    edges = canonical_edges(model)
    with ExitStack() as stack:
        stack.enter_context(borrowed(model))
        at = None if plan is None else stack.enter_context(placed(model, plan, CPU, copies=copies))
        engine = IncrementalEngine(
            Question(model, loader, prompts, ablation, metric, placement=at), precision
        )
        return _walk(engine, edges)


def _walk(engine: IncrementalEngine, edges: list[Any]) -> list[float]:
    found: list[float] = []
    done = 0
    while done < len(edges):
        rest = edges[done : done + 40]
        some = engine.effects(rest, [False] * len(rest), exact=not engine.screens)
        found += some
        engine.remove([edge for i, edge in enumerate(rest[: len(some)]) if (done + i) % 3])
        done += len(some)
    engine.restore([edge for i, edge in enumerate(edges) if i % 3])
    return [*found, engine.present_loss or 0.0]


ABLATIONS = [AblationType.RESAMPLE, AblationType.ZERO, AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT]


@pytest.mark.parametrize("copies", [False, True], ids=["mapped", "copied"])
@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=[] if seed < 6 else pytest.mark.full) for seed in range(60)],
)
def test_every_effect_is_the_same(seed: int, copies: bool) -> None:
    """Bit for bit. Weights that are copied are empty while they are away, so that a product which
    forgot to ask for one would not even have the right shape."""
    architecture = random_architecture(1000 + seed, max_edges=400)
    ablation, low = ABLATIONS[seed % 3], bool(seed % 2)
    model, loader = build(architecture)
    expected = effects(model, loader, ablation, None, False, low)
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    plan = nothing_stays(model, collect_batches(model, loader, None))
    assert effects(model, loader, ablation, plan, copies, low) == expected
    for name, parameter in model.named_parameters():
        same, address, values = before[name]
        assert parameter is same and torch.equal(parameter, values), name
        assert parameter.data_ptr() == address or not copies, name
        parameter.data += 0  # ordinary memory again, that may be written to
    assert not any(module._forward_pre_hooks for module in model.modules())


SEARCHED = sorted(FAMILIES.keys() - {"gemma-2", "shortformer"})  # those run on the host's forward
SAMPLED = {"gpt2", "llama-3", "mixtral", "bloom", "solu", "attn-only", "pythia"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLED else pytest.mark.full) for n in SEARCHED]
)
def test_every_family_asks_for_its_weights(name: str) -> None:
    model, loader = pahq.adapt(family_model(name)), family_loader()
    plan = nothing_stays(model, collect_batches(model, loader, None))
    for low in [False] if name == "mixtral" else [False, True]:  # experts have no low products
        expected = effects(model, loader, AblationType.RESAMPLE, None, False, low)
        assert effects(model, loader, AblationType.RESAMPLE, plan, True, low) == expected


def test_the_models_own_forward_asks_for_its_weights() -> None:
    model, loader = pahq.adapt(family_model("gpt2")), family_loader()
    prompts = collect_batches(model, loader, 1)
    plan = nothing_stays(model, prompts)
    with torch.inference_mode():
        expected = model(prompts[0].clean)
        with placed(model, plan, CPU, copies=True):
            assert torch.equal(model(prompts[0].clean), expected)


@pytest.mark.parametrize("copies", [False, True], ids=["mapped", "copied"])
def test_weights_that_blocks_share_stay(copies: bool) -> None:
    """They would have to come with each block that uses them, and go with none."""
    inner = family_model("gpt2")
    inner.blocks[1].mlp.W_in = inner.blocks[0].mlp.W_in
    inner.unembed.W_U = torch.nn.Parameter(inner.unembed.W_U.detach())
    model, loader = pahq.adapt(inner), family_loader()
    shared = model.blocks[0].mlp.W_in
    plan = nothing_stays(model, collect_batches(model, loader, None))
    assert not any(shared is p for unit in units_of(model) for p in unit.parameters)
    expected = effects(model, loader, AblationType.RESAMPLE, None, False, False)
    assert effects(model, loader, AblationType.RESAMPLE, plan, copies, False) == expected
    needed = sum(p.nbytes for _, p in weight_parameters(model))
    whole = plan_memory(model, collect_batches(model, loader, None), 10**10, None, 2**20)
    assert whole.weights == whole.staying == needed


@pytest.mark.parametrize("copies", [False, True], ids=["mapped", "copied"])
def test_an_exception_gives_everything_back(copies: bool) -> None:
    model, loader = build(random_architecture(7))
    plan = nothing_stays(model, collect_batches(model, loader, None))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), placed(model, plan, CPU, copies=copies) as placement:
        _ = placement.blocks[0].attn
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_full_disk_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = build(random_architecture(8))
    plan = nothing_stays(model, collect_batches(model, loader, None))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    calls = iter([True, True, False])
    spill = place.spilled

    def full(x: torch.Tensor, folder: Path) -> torch.Tensor:
        if not next(calls):
            raise OSError(28, "No space left on device")
        return spill(x, folder)

    monkeypatch.setattr(place, "spilled", full)
    with pytest.raises(OSError, match="No space"), placed(model, plan, CPU):
        pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
