"""Searches on a GPU: decisions against full host forwards there, effects against those on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.types import AblationType

import pahq_plugin as pahq
from pahq_plugin.precision.config import default_precision
from tests.helpers.families import FAMILIES, family_loader
from tests.helpers.gpu import DEVICE, family_on_gpu, prompts_on_gpu, taken
from tests.helpers.replay import replay
from tests.helpers.searches import discover
from tests.test_families import EXPERTS, THRESHOLDS, adapted, heard, same, state

ABLATIONS = (AblationType.RESAMPLE, AblationType.ZERO, AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT)
PROBLEMS = ("ioi", "greater-than", "induction", "tracr-reverse")


def options(family: str, method: str) -> dict[str, Any]:
    return {"precision": EXPERTS} if family == "mixtral" and method == "pahq" else {}


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_decision_is_that_of_full_host_forwards(family: str, positional: bool) -> None:
    """Another ablation for each family; the state of the model stays as it was."""
    ablation = ABLATIONS[list(FAMILIES).index(family) % len(ABLATIONS)]
    at, model, loader = (
        THRESHOLDS[positional],
        family_on_gpu(family, positional),
        prompts_on_gpu(positional),
    )
    before, replayed = state(model), set[tuple[Any, ...]]()
    for engine in ("incremental", "host"):
        for method in ("acdc", "pahq"):
            with heard():
                result = discover(
                    model, loader, method=method, engine=engine, threshold=at, ablation=ablation,
                    **options(family, method),
                )  # fmt: skip
            assert same(before, state(model)), (engine, method)
            decisions = tuple(taken(result))
            if decisions in replayed:
                continue
            replayed.add(decisions)
            report = replay(model, loader, result.decisions, threshold=at, ablation=ablation)
            assert report.agrees, (engine, method, report)
            assert 0.02 <= report.share_kept <= 0.6, (engine, method, report)


@pytest.mark.parametrize("family", ["gpt2", "llama-3", "bloom", "attn-only"])
@pytest.mark.parametrize("method", ["acdc", "pahq", "eactp", "eap", "eap-ig"])
def test_effects_are_those_of_the_cpu(family: str, method: str) -> None:
    options = {"threshold": 0.003} if method in ("acdc", "pahq") else {}
    here = discover(family_on_gpu(family), prompts_on_gpu(), method=method, **options)
    there = discover(adapted(family), family_loader(), method=method, **options)
    mine = {str(d.edge): d.effect for d in here.decisions}
    theirs = {str(d.edge): d.effect for d in there.decisions}
    assert mine.keys() == theirs.keys()
    assert mine == pytest.approx(theirs, rel=1e-3, abs=2e-6)


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_pahq_finds_the_circuit_of_acdc(name: str, threshold: float) -> None:
    """In the formats that this GPU has kernels for."""
    problem = pahq.load_problem(name)
    assert next(problem.model.parameters()).device.type == DEVICE  # without being asked
    found = [
        taken(discover(problem.model, problem.train_loader, method=method, threshold=threshold))
        for method in ("acdc", "pahq")
    ]
    assert found[0] == found[1] and any(kept for _, kept in found[0])


@pytest.mark.parametrize("low", ["fp8_e4m3", "fp8_e5m2", "int8", "bf16", "fp16"])
@pytest.mark.parametrize("scale", ["row", "head", "tensor"])
def test_any_format_finds_the_circuit_of_acdc(low: str, scale: str) -> None:
    problem = pahq.load_problem("induction")
    precision = pahq.PrecisionConfig(low=low, mlp=low, scale=scale)
    found = [
        taken(discover(problem.model, problem.train_loader, threshold=1e-2, **more))
        for more in ({"method": "acdc"}, {"method": "pahq", "precision": precision})
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_kernels_and_reference_arithmetic_find_the_same_circuit(kernel: Any) -> None:
    problem = pahq.load_problem("greater-than")
    precision = pahq.PrecisionConfig(low="fp8_e4m3", mlp="bf16", kernel=kernel)
    found = [
        taken(discover(problem.model, problem.train_loader, threshold=1e-2, **more))
        for more in ({"method": "acdc"}, {"method": "pahq", "precision": precision})
    ]
    assert found[0] == found[1]


def test_the_default_is_what_the_gpu_multiplies() -> None:
    precision = default_precision(torch.device(DEVICE))
    if torch.cuda.get_device_capability() >= (8, 9):
        assert (precision.low, precision.mlp) == ("fp8_e4m3", "bf16")


@pytest.mark.parametrize("method", ["pahq-paper", "rtn-q"])
def test_the_papers_methods_run(method: str) -> None:
    """Their decisions are those of rounded arithmetic: most, not all, are those of the CPU."""
    problem = pahq.load_problem("greater-than")
    result = discover(problem.model, problem.train_loader, method=method, threshold=1e-2)
    cpu = pahq.load_problem("greater-than", device="cpu")
    other = discover(cpu.model, cpu.train_loader, method=method, threshold=1e-2)
    pairs = list(zip(taken(result), taken(other), strict=True))
    assert sum(mine == theirs for mine, theirs in pairs) >= 0.9 * len(pairs)


def test_scores_of_every_method_of_the_host_are_those_of_the_cpu() -> None:
    gpu, cpu = pahq.load_problem("tracr-reverse"), pahq.load_problem("tracr-reverse", device="cpu")
    for method in ("Edge Attribution Patching", "Edge Answer Logit Diff Gradient At Clean", "Act Mag"):
        here, there = (
            discover(problem.model, problem.train_loader, method=method) for problem in (gpu, cpu)
        )
        mine, theirs = ({str(d.edge): d.effect for d in found.decisions} for found in (here, there))
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5), method
