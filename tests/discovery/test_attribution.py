"""``eap`` is the host's, ``eap-ig`` and ``eap-ig-activations`` are their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attr import evolve
from auto_circuit.data import PromptDataLoader
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer

from pahq_plugin.discovery.host_attribution import attribute_by_hooks
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.prompts import collect_batches, loader_of
from pahq_plugin.metrics import logit_diff
from pahq_plugin.results.result import Discovery
from tests.helpers.architectures import build
from tests.helpers.refused import refused
from tests.helpers.replay import canonical_order
from tests.helpers.searches import EAP, by_edge, case, discover, scores_by_edge, small_edges
from tests.helpers.small import LENGTH, loader, patchable, transformer

METHODS = ("eap", "eap-ig", "eap-ig-activations")


@pytest.mark.parametrize("seed", [3, 6])
def test_eap_is_the_hosts(seed: int) -> None:
    architecture = case(seed, dtype=torch.float64, out="last_seq")
    model, prompts = build(architecture)
    ours = by_edge(discover(model, prompts, method="eap", batches=None))
    host_model, prompts = build(architecture)
    theirs = PRUNE_ALGO_DICT[EAP].func(host_model, prompts, None)
    assert ours == pytest.approx(scores_by_edge(host_model, theirs), rel=1e-5, abs=1e-7)
    assert len(set(ours.values())) > len(ours) / 2
    by_key = by_edge(discover(model, prompts, method=EAP, batches=None))
    assert by_key == pytest.approx(ours, rel=1e-6, abs=1e-8)


def test_eap_of_one_batch_reads_one_batch() -> None:
    model, prompts = build(case(3, dtype=torch.float32, out="last_seq"))
    one, all_ = (by_edge(discover(model, prompts, method="eap", batches=n)) for n in (1, None))
    assert one != pytest.approx(all_, rel=1e-2)


@pytest.mark.parametrize("ablation", list(AblationType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("method", METHODS)
def test_attribution_takes_every_ablation(method: str, ablation: AblationType) -> None:
    """Patching by any ablation scores as the first-order change of the loss.

    With one step, ``eap-ig`` is ``eap`` up to the average over batches.
    """
    model, prompts = small_edges(), loader()
    values = by_edge(discover(model, prompts, method=method, ablation=ablation))
    assert all(math.isfinite(value) for value in values.values())
    assert len(set(values.values())) > len(values) / 2
    batches = collect_batches(model, prompts, None)
    question = Question(model, prompts, batches, ablation, ("logit_diff", logit_diff))
    once = scores_by_edge(model, attribute_by_hooks(question, "inputs", 1))
    if method == "eap":
        assert values == pytest.approx(once, rel=1e-4, abs=1e-6)
    else:
        assert values != pytest.approx(once, rel=1e-2)


def mean_difference(logits: Tensor, batch: Any) -> Tensor:
    """Wrong minus right logit of one answer each, mean over the prompts."""
    wrong, right = (logits.gather(1, ids) for ids in (batch.wrong_answers, batch.answers))
    return (wrong - right).mean()


Points = list[list[tuple[str, Tensor]]]
"""For each point the hook points whose values are replaced, and by what."""


def between(inner: HookedTransformer, prompts: PromptDataLoader, names: list[str], steps: int) -> Points:
    """For each name the points at which its value is ``k / steps`` clean and the rest corrupt."""
    batch = next(iter(prompts))
    clean, corrupt = (inner.run_with_cache(tokens)[1] for tokens in (batch.clean, batch.corrupt))
    return [
        [(name, corrupt[name] + k / steps * (clean[name] - corrupt[name]))]
        for name in names
        for k in range(1, steps + 1)
    ]


def finite_differences(
    inner: HookedTransformer, model: PatchableModel, prompts: PromptDataLoader, points: Points
) -> dict[Edge, float]:
    """Attribution by its definition, with TransformerLens hooks and central differences alone.

    At each point the loss is differentiated along (corrupt - clean) output of an edge's source, added to
    what its destination reads.
    """
    batch = next(iter(prompts))
    outputs = [source_outputs(inner, model, t) for t in (batch.clean, batch.corrupt)]
    step = 1e-4
    values = dict.fromkeys(canonical_order(model), 0.0)
    for replaced in points:
        for edge in values:
            direction = outputs[1][edge.src.name] - outputs[0][edge.src.name]
            losses = [
                loss_with(inner, edge, replaced, sign * step * direction, batch) for sign in (1, -1)
            ]
            values[edge] += (losses[0] - losses[1]) / (2 * step) / len(points)
    return values


def source_outputs(
    inner: HookedTransformer, model: PatchableModel, prompts: Tensor
) -> dict[str, Tensor]:
    _, cache = inner.run_with_cache(prompts)
    outputs = {}
    for src in model.srcs:
        value = cache[src.module_name]
        outputs[src.name] = value if src.head_idx is None else value[:, :, src.head_idx]
    return outputs


def loss_with(
    inner: HookedTransformer, edge: Edge, replaced: list[tuple[str, Tensor]], added: Tensor, batch: Any
) -> float:
    def add(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        if edge.dest.head_idx is None:
            return value + added
        value[:, :, edge.dest.head_idx] += added
        return value

    hooks = [(name, lambda value, hook, own=own: own) for name, own in replaced]
    logits = inner.run_with_hooks(batch.clean, fwd_hooks=[*hooks, (edge.dest.module_name, add)])[:, -1]
    return float(mean_difference(logits, batch))


GELU, PARALLEL = {"act_fn": "gelu"}, {"parallel_attn_mlp": True, "act_fn": "silu"}


@pytest.mark.parametrize("kind", [GELU, PARALLEL])
@pytest.mark.parametrize("steps", [None, 2])
def test_eap_ig_is_its_definition(steps: int | None, kind: dict[str, Any]) -> None:
    arguments = {"n_heads": 2, "dtype": torch.float64, **kind}
    with torch.no_grad():
        inner = transformer(4, **arguments)
        model, prompts = patchable(transformer(4, **arguments)), loader(4)
        points = between(inner, prompts, ["blocks.0.hook_resid_pre"], steps or 5)
        expected = finite_differences(inner, model, prompts, points)
    result = discover(model, prompts, method="eap-ig", steps=steps)
    assert result.settings["steps"] == (steps or 5) and result.settings["metric"] == "logit_diff"
    assert by_edge(result) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    at_clean = by_edge(discover(model, prompts, method="eap"))
    assert by_edge(result) != pytest.approx(at_clean, rel=1e-2)


@pytest.mark.parametrize("kind", [GELU, PARALLEL])
def test_eap_ig_activations_is_its_definition(kind: dict[str, Any]) -> None:
    """The outputs of each layer in turn lie between; gradients do not pass through that layer."""
    arguments = {"n_heads": 1, "dtype": torch.float64, **kind}
    layers = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.hook_result", "hook_mlp_out")]
    with torch.no_grad():
        inner = transformer(4, **arguments)
        model, prompts = patchable(transformer(4, **arguments)), loader(4)
        points = between(inner, prompts, ["blocks.0.hook_resid_pre", *layers], 2)
        expected = finite_differences(inner, model, prompts, points)
    ours = by_edge(discover(model, prompts, method="eap-ig-activations", steps=2))
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)
    inputs = by_edge(discover(model, prompts, method="eap-ig", steps=2))
    assert ours != pytest.approx(inputs, rel=1e-2)


@pytest.mark.parametrize("seed", [3, 6])
def test_one_step_of_eap_ig_is_the_gradient_at_clean(seed: int) -> None:
    model, prompts = small_edges(seed=seed), loader(seed)
    eap = by_edge(discover(model, prompts, method="eap"))
    once = by_edge(discover(model, prompts, method="eap-ig", steps=1))
    assert once == pytest.approx(eap, rel=1e-4, abs=1e-6)


def test_scores_per_position_add_up() -> None:
    """Over all positions the scores of an edge add up to that of the edge without positions."""
    whole, each = small_edges(), patchable(transformer(n_heads=2), seq_len=LENGTH)
    for method in METHODS:
        total = by_edge(discover(whole, loader(), method=method))
        summed = dict.fromkeys((edge.name for edge in whole.edges), 0.0)
        for edge, value in by_edge(discover(each, loader(), method=method)).items():
            summed[edge.name] += value
        assert summed == pytest.approx({e.name: v for e, v in total.items()}, rel=1e-4, abs=1e-6)


# Metrics and steps -------------------------------------------------------------------------------


def twice(logits: Tensor, clean_logits: Tensor, batch: Any) -> Tensor:
    """Twice the default."""
    return 2 * logit_diff(logits, clean_logits, batch)


@pytest.mark.parametrize("method", METHODS)
def test_a_metric_of_ones_own(method: str) -> None:
    model, prompts = small_edges(), loader()
    default, named, double = (
        discover(model, prompts, method=method, metric=m) for m in (None, "logit_diff", twice)
    )
    assert default.decisions == named.decisions
    assert by_edge(double) == pytest.approx({e: 2 * v for e, v in by_edge(named).items()}, rel=1e-5)
    assert double.settings["metric"] == "twice"


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("metric", ["kl_div", "mse"])
def test_distances_from_the_clean_output(method: str, metric: str) -> None:
    """They need no answers."""
    (batch,) = loader()
    prompts = loader_of([evolve(batch, answers=torch.ones(4, 1), wrong_answers=None)], loader())
    result = discover(small_edges(), prompts, method=method, metric=metric, n_edges=5)
    assert result.settings["metric"] == metric and len(result.circuit) == 5
    assert all(decision.effect for decision in result.decisions[:5])


@pytest.mark.parametrize("metric", ["kl_div", "mse"])
def test_distances_have_no_gradient_at_the_clean_state(metric: str) -> None:
    for method, steps, instead in (("eap", None, 'method="eap-ig"'), ("eap-ig", 1, "more steps")):
        with refused(ConfigError, f"{method!r} cannot use metric {metric!r}", instead):
            discover(small_edges(), loader(), method=method, metric=metric, steps=steps)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "5"])
def test_steps_out_of_range(steps: Any) -> None:
    with refused(ConfigError, f"steps={steps!r} must be an integer above 0"):
        discover(small_edges(), loader(), method="eap-ig", steps=steps)


@pytest.mark.parametrize("method", ["acdc", "eap", EAP])
def test_steps_are_refused_by_other_methods(method: str) -> None:
    with refused(ConfigError, f"method {method!r} cannot use steps"):
        discover(small_edges(), loader(), method=method, steps=5)


def test_models_that_only_the_host_runs() -> None:
    """Its own forwards give what ours give of the same weights in another dtype."""
    for method in METHODS:
        whole, half = (
            by_edge(discover(small_edges(dtype=kind), loader(), method=method))
            for kind in (torch.float32, torch.bfloat16)
        )
        largest = max(map(abs, whole.values()))
        assert whole == pytest.approx(half, abs=0.05 * largest)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_result_holds_metric_and_steps(method: str, tmp_path: Path) -> None:
    model = small_edges()
    result = discover(model, loader(), method=method, n_edges=5)
    result.save(tmp_path / "found")
    assert Discovery.load(tmp_path / "found", model).settings == result.settings
    assert ("steps" in result.settings) == (method != "eap")
