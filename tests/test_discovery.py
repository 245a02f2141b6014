"""``discover``: what it measures, what it returns, and that the model is given back as it was."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT
from auto_circuit.types import AblationType, Edge, PruneScores
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import desc_prune_scores, prune_scores_threshold
from torch import Tensor
from transformer_lens import HookedTransformer

import pahq_plugin as pahq
from pahq_plugin.catalogue import Method
from pahq_plugin.discovery import UNREMOVED, rank
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.attribution import integrated_gradients
from pahq_plugin.host.patching import collect_batches, prepare
from pahq_plugin.searching import ENGINES
from tests.helpers.architectures import Architecture, build, random_architecture
from tests.helpers.lent import random_states, unusual_state
from tests.helpers.replay import (
    Decision,
    canonical_order,
    sequential_acdc,
    threshold_for_share,
)
from tests.helpers.small import LENGTH, loader, patchable, small_model, tokens, transformer

EAP = "Edge Answer Logit Diff Gradient At Clean"
OWN = ["pahq", "pahq-paper", "rtn-q", "acdc", "eap", "eap-ig"]
HOST = ["Random", "ACDC", "Act Mag", "Edge Attribution Patching", EAP]

discover = partial(pahq.discover, progress=False)


def small_edges(n_heads: int = 2, **changes: Any) -> PatchableModel:
    """As `small_model`, with fewer edges."""
    return small_model(n_heads=n_heads, **changes)


# The model is given back --------------------------------------------------------------------------


@pytest.mark.parametrize("method", OWN + HOST)
def test_the_model_is_given_back_as_it_was(method: str) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    result = discover(model, prompts, method=method)
    assert len(result.decisions) == len(model.edges)
    assert result.prune_scores
    before.assert_unchanged()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("method", OWN + HOST)
def test_the_random_generators_are_untouched(method: str, shuffle: bool) -> None:
    """Even asking a loader for its batches may draw from torch's generator."""
    model, data = small_edges(), loader(prompts=8).dataset
    prompts = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=4, shuffle=shuffle)
    states = random_states()
    discover(model, prompts, method=method)
    assert random_states() == states


@pytest.mark.parametrize("method", ["pahq", "acdc", "eap", "eap-ig"])
def test_the_state_of_the_model_does_not_count(method: str) -> None:
    """Masks, training mode and gradients from before have no part in the result."""
    plain, odd = small_edges(), small_edges()
    unusual_state(odd)
    expected = discover(plain, loader(), method=method)
    assert discover(odd, loader(), method=method).decisions == expected.decisions


def raising(error: BaseException, after: int) -> Callable[..., Tensor]:
    """A metric that raises at its ``after``-th call."""
    calls = iter(range(after))

    def metric(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        if next(calls, None) is None:
            raise error
        return (logits - clean_logits).square().mean(dim=-1)

    return metric


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("method", ["pahq", "acdc", "rtn-q"])
@pytest.mark.parametrize("after", [0, 1, 25])
def test_the_model_is_given_back_when_the_metric_raises(
    after: int, method: str, engine: str, error: BaseException
) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    generators = random.getstate()
    with pytest.raises(type(error)) as caught:
        discover(model, prompts, method=method, engine=engine, metric=raising(error, after))
    assert caught.value is error
    before.assert_unchanged()
    assert random.getstate() == generators


@pytest.mark.parametrize("method", ["eap", "eap-ig", "ACDC"])
def test_the_model_is_given_back_when_a_scoring_method_is_interrupted(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = small_edges(), loader()
    before = unusual_state(model)
    module = model.wrapped_model.unembed
    calls = iter(range(1))

    def interrupted(x: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return type(module).forward(module, x)

    monkeypatch.setattr(module, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        discover(model, prompts, method=method)
    monkeypatch.undo()
    before.assert_unchanged()


def test_two_searches_are_equal_and_draw_no_random_numbers() -> None:
    model, prompts = small_edges(), loader()
    first = discover(model, prompts, seed=1)
    torch.manual_seed(99)
    random.seed(99)
    assert discover(model, prompts, seed=1).decisions == first.decisions


# Every ablation and metric, against the sequential algorithm --------------------------------------


def case(seed: int = 3, **changes: Any) -> Architecture:
    return dataclasses.replace(random_architecture(seed, max_edges=150), **changes)


def assert_agrees(result: pahq.Discovery, expected: list[Decision], threshold: float) -> None:
    """The same decisions in the same order; ties aside, and some of each kind."""
    assert [d.edge for d in result.decisions] == [d.edge for d in expected]
    kept = sum(d.kept for d in expected)
    assert 0.02 <= kept / len(expected) <= 0.6
    for ours, theirs in zip(result.decisions, expected, strict=True):
        assert ours.effect == pytest.approx(theirs.effect, rel=1e-3, abs=3e-6), ours.edge
        tie = abs(theirs.effect - threshold) < max(1e-6, 1e-4 * threshold)
        assert tie or ours.kept == theirs.kept, ours.edge
        assert ours.exact


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("ablation", list(AblationType), ids=lambda kind: kind.name)
def test_every_ablation_type(ablation: AblationType, engine: str) -> None:
    model, prompts = build(case(ablation=ablation, dtype=torch.float32, metric="kl_div"))
    threshold, expected = threshold_for_share(model, prompts, ablation=ablation)
    result = discover(
        model, prompts, method="acdc", threshold=threshold, ablation=ablation, engine=engine
    )
    assert_agrees(result, expected, threshold)
    assert result.settings["ablation"] == ablation.name.lower()
    named = discover(
        model, prompts, method="acdc", threshold=threshold, ablation=ablation.name, engine=engine
    )
    assert named.decisions == result.decisions


def largest_change(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
    """A loss of one's own, ``[prompt]``."""
    return (logits - clean_logits).abs().flatten(start_dim=1).amax(dim=1)


@pytest.mark.parametrize("engine", ["host", "incremental"])
@pytest.mark.parametrize("metric", ["kl_div", "mse", "logit_diff", largest_change])
def test_every_metric(metric: Any, engine: str) -> None:
    model, prompts = build(case(ablation=AblationType.RESAMPLE, dtype=torch.float32))
    threshold, expected = threshold_for_share(model, prompts, metric=metric)
    result = discover(model, prompts, method="acdc", threshold=threshold, metric=metric, engine=engine)
    assert_agrees(result, expected, threshold)
    name = metric if isinstance(metric, str) else "largest_change"
    assert result.settings["metric"] == name


@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("batches", [1, 2, None])
def test_batches_are_averaged_over(batches: int | None, method: str) -> None:
    model, prompts = build(case(5, ablation=AblationType.RESAMPLE, dtype=torch.float32))
    assert len(prompts) == 2
    threshold, expected = threshold_for_share(model, prompts, batches=batches)
    result = discover(model, prompts, method=method, threshold=threshold, batches=batches)
    if method == "acdc":
        assert_agrees(result, expected, threshold)
    assert [d.kept for d in result.decisions] == [d.kept for d in expected]
    one = discover(model, prompts, method="acdc", threshold=threshold, batches=1)
    same = [d.effect for d in one.decisions] == [d.effect for d in result.decisions]
    assert same == (batches == 1 and method == "acdc")


def test_an_order_of_ones_own() -> None:
    model, prompts = small_edges(), loader()
    order = canonical_order(model)
    random.Random(2).shuffle(order)
    threshold = 0.03
    expected = sequential_acdc(model, prompts, order, threshold=threshold)
    for engine in ("host", "incremental"):
        result = discover(model, prompts, method="acdc", threshold=threshold, order=order, engine=engine)
        assert_agrees(result, expected, threshold)
        assert result.settings["order"] == "given"
    canonical = discover(model, prompts, method="acdc", threshold=threshold)
    assert [d.edge for d in canonical.decisions] == canonical_order(model)
    assert canonical.settings["order"] == "canonical"
    assert {d.edge: d.effect for d in canonical.decisions} != {
        d.edge: d.effect for d in result.decisions
    }


def test_the_canonical_order_scores_host_methods_too() -> None:
    model = small_edges()
    result = discover(model, loader(), method="Official Circuit", true_edges=set())
    assert [d.edge for d in result.decisions] == canonical_order(model)


@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_every_engine_takes_the_same_decisions(method: str) -> None:
    model, prompts = small_edges(), loader()
    results = [discover(model, prompts, method=method, threshold=0.003, engine=name) for name in ENGINES]
    kept = [[d.kept for d in result.decisions] for result in results]
    assert kept[0] == kept[1] == kept[2] and 0 < sum(kept[0]) < len(kept[0])


# Attribution --------------------------------------------------------------------------------------


def scores_by_edge(model: PatchableModel, scores: PruneScores) -> dict[Edge, float]:
    return {edge: edge.prune_score(scores).item() for edge in model.edges}


def by_edge(result: pahq.Discovery) -> dict[Edge, float]:
    return {decision.edge: decision.effect for decision in result.decisions}


@pytest.mark.parametrize("seed", [3, 6])
def test_eap_is_the_hosts(seed: int) -> None:
    architecture = case(seed, dtype=torch.float32, out="last_seq")
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
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_attribution_takes_every_ablation(method: str, ablation: AblationType) -> None:
    """Patching by any ablation scores as the first-order change of the loss.

    With one step, ``eap-ig`` is ``eap`` up to the average over batches.
    """
    model, prompts = small_edges(), loader()
    values = by_edge(discover(model, prompts, method=method, ablation=ablation))
    assert all(math.isfinite(value) for value in values.values())
    assert len(set(values.values())) > len(values) / 2
    prepared = prepare(model, prompts, collect_batches(model, prompts, None), ablation)
    once = scores_by_edge(model, integrated_gradients(model, prepared, 1, mean_difference))
    if method == "eap":
        assert values == pytest.approx(once, rel=1e-4, abs=1e-6)
    else:
        assert values != pytest.approx(once, rel=1e-2)


def mean_difference(logits: Tensor, batch: Any) -> Tensor:
    """Wrong minus right logit of one answer each, mean over the prompts."""
    wrong, right = (logits.gather(1, ids) for ids in (batch.wrong_answers, batch.answers))
    return (wrong - right).mean()


def finite_differences(
    inner: HookedTransformer, model: PatchableModel, prompts: PromptDataLoader, steps: int
) -> dict[Edge, float]:
    """EAP-IG by its definition, with TransformerLens hooks and central differences alone.

    From an embedding on the line from corrupt to clean, the loss is differentiated along (corrupt -
    clean) output of an edge's source, added to what its destination reads.
    """
    batch = next(iter(prompts))
    outputs = [source_outputs(inner, model, t) for t in (batch.clean, batch.corrupt)]
    step = 1e-4
    values = dict.fromkeys(canonical_order(model), 0.0)
    for k in range(1, steps + 1):
        clean, corrupt = (out["Resid Start"] for out in outputs)
        embedding = corrupt + k / steps * (clean - corrupt)
        for edge in values:
            direction = outputs[1][edge.src.name] - outputs[0][edge.src.name]
            losses = [
                loss_with(inner, edge, embedding, sign * step * direction, batch) for sign in (1, -1)
            ]
            values[edge] += (losses[0] - losses[1]) / (2 * step) / steps
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
    inner: HookedTransformer, edge: Edge, embedding: Tensor, added: Tensor, batch: Any
) -> float:
    def start(value: Tensor, hook: object) -> Tensor:
        return embedding

    def add(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        if edge.dest.head_idx is None:
            return value + added
        value[:, :, edge.dest.head_idx] += added
        return value

    hooks = [("blocks.0.hook_resid_pre", start), (edge.dest.module_name, add)]
    logits = inner.run_with_hooks(batch.clean, fwd_hooks=hooks)[:, -1]
    return float(mean_difference(logits, batch))


@pytest.mark.parametrize("kind", [{"act_fn": "gelu"}, {"parallel_attn_mlp": True, "act_fn": "silu"}])
def test_eap_ig_is_its_definition(kind: dict[str, Any]) -> None:
    arguments = {"n_heads": 2, "dtype": torch.float64, **kind}
    with torch.no_grad():
        inner = transformer(4, **arguments)
        model, prompts = patchable(transformer(4, **arguments)), loader(4)
        expected = finite_differences(inner, model, prompts, steps=5)
    ours = by_edge(discover(model, prompts, method="eap-ig"))
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)
    at_clean = by_edge(discover(model, prompts, method="eap"))
    assert ours != pytest.approx(at_clean, rel=1e-2)


@pytest.mark.parametrize("seed", [3, 6])
def test_one_step_of_eap_ig_is_the_gradient_at_clean(seed: int) -> None:
    model, prompts = small_edges(seed=seed), loader(seed)
    prepared = prepare(model, prompts, collect_batches(model, prompts, None), AblationType.RESAMPLE)
    scores = integrated_gradients(model, prepared, 1, mean_difference)
    eap = by_edge(discover(model, prompts, method="eap"))
    assert scores_by_edge(model, scores) == pytest.approx(eap, rel=1e-4, abs=1e-6)


def test_scores_per_position_add_up() -> None:
    """Over all positions the scores of an edge add up to that of the edge without positions."""
    whole, each = small_edges(), patchable(transformer(n_heads=2), seq_len=LENGTH)
    for method in ("eap", "eap-ig"):
        total = by_edge(discover(whole, loader(), method=method))
        summed = dict.fromkeys((edge.name for edge in whole.edges), 0.0)
        for edge, value in by_edge(discover(each, loader(), method=method)).items():
            summed[edge.name] += value
        assert summed == pytest.approx({e.name: v for e, v in total.items()}, rel=1e-4, abs=1e-6)


# Host algorithms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["Random", "Act Mag", EAP, "Edge Answer Log Prob Gradient At Clean"])
def test_a_host_algorithm_runs_under_its_own_key(key: str) -> None:
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, method=key, batches=None, seed=11)
    torch.manual_seed(11)
    # The host draws module by module, in the order of a set; we, in that of their names.
    model.patch_masks = dict(sorted(model.patch_masks.items()))
    expected = PRUNE_ALGO_DICT[key].func(model, prompts, None)
    assert by_edge(result) == pytest.approx(scores_by_edge(model, expected), rel=1e-5, abs=1e-7)
    assert result.settings["method"] == key and result.settings["scored"]


def test_the_seed_decides_what_is_drawn() -> None:
    model = small_edges()
    draws = [by_edge(discover(model, loader(), method="Random", seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_official_circuit_is_the_one_given() -> None:
    model = small_edges()
    official = set(canonical_order(model)[3:9])
    result = discover(model, loader(), method="Official Circuit", true_edges=official)
    assert result.circuit == official
    assert {d.effect for d in result.decisions} == {0.0, 1.0}


def test_the_hosts_acdc_becomes_finite() -> None:
    """Edges that it never removes have an infinite score there."""
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, method="ACDC")
    ordered = small_edges()
    ordered.edges = canonical_order(ordered)  # type: ignore[assignment]  # the host's is a set
    expected = PRUNE_ALGO_DICT["ACDC"].func(ordered, prompts, None)
    theirs = scores_by_edge(model, expected)
    finite = max(value for value in theirs.values() if value != math.inf)
    assert math.inf in theirs.values()
    assert result.circuit == {edge for edge, value in theirs.items() if value == math.inf}
    for edge, value in by_edge(result).items():
        wanted = UNREMOVED * finite if theirs[edge] == math.inf else theirs[edge]
        assert value == pytest.approx(wanted, rel=1e-6)
    assert all(bool(values.isfinite().all()) for values in result.prune_scores.values())


def test_options_of_a_host_algorithm() -> None:
    model, prompts = small_edges(), loader()
    swept = {"tao_bases": [3], "tao_exps": [-3]}
    method = Method("one threshold", "", "host", key="ACDC", options=swept)
    result = discover(model, prompts, method=method)
    assert result.circuit == discover(model, prompts, method="acdc", threshold=0.003).circuit
    assert result.settings["method"] == "one threshold" and result.settings["options"] == swept
    wrong = Method("wrong", "", "host", key="ACDC", options={"taus": [3]})
    with pytest.raises(ConfigError, match=r"'ACDC' has no option 'taus'; it has .*tao_bases"):
        discover(model, prompts, method=wrong)


def test_the_hosts_training_curves_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(*_: object, **__: object) -> None:
        raise AssertionError("a browser window was opened")

    monkeypatch.setattr("plotly.graph_objects.Figure.show", shown)
    quick = Method("probing", "", "host", key="Subnetwork Edge Probing", options={"epochs": 2})
    assert discover(small_edges(), loader(), method=quick).circuit


# Ranking ------------------------------------------------------------------------------------------


def assigned(model: PatchableModel, values: list[float]) -> PruneScores:
    """Scores of the edges in canonical order: ``values``, then 0."""
    scores = model.new_prune_scores()
    for edge, value in zip(canonical_order(model), values, strict=False):
        scores[edge.dest.module_name][edge.patch_idx] = value
    return scores


@pytest.mark.parametrize("n_edges", [0, 1, 2, 3, 4, 5, 6, 7, 46])
def test_ties_are_kept_as_run_circuits_does(n_edges: int) -> None:
    model = small_edges()
    scores = assigned(model, [3.0, -2.0, 2.0, 1.0, -1.0, 1.0])
    edges = canonical_order(model)
    assert len(edges) == 46
    decisions = rank(scores, edges, n_edges)
    least = prune_scores_threshold(desc_prune_scores(scores), n_edges)
    expected = {edge for edge in edges if abs(edge.prune_score(scores)) >= least}
    assert {d.edge for d in decisions if d.kept} == expected
    assert {d.edge for d in decisions} == set(edges) and len(decisions) == 46
    assert [abs(d.effect) for d in decisions] == sorted((abs(d.effect) for d in decisions), reverse=True)
    assert [d.edge for d in decisions][:6] == edges[:6]


def test_without_a_number_every_edge_with_a_score_is_kept() -> None:
    model = small_edges()
    decisions = rank(assigned(model, [0.0, 1e-30, -5.0]), canonical_order(model), None)
    assert {d.edge for d in decisions if d.kept} == set(canonical_order(model)[1:3])
    nothing = rank(model.new_prune_scores(), canonical_order(model), None)
    assert not any(d.kept for d in nothing)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.inf, 2.0, -math.inf, -3.0], [30.0, 2.0, -30.0, -3.0]),
        ([math.inf, 0.0], [10.0, 0.0]),
        ([math.inf] * 46, [10.0] * 46),
    ],
)
def test_infinite_scores_become_ten_times_the_largest(
    values: list[float], expected: list[float]
) -> None:
    model = small_edges()
    order = canonical_order(model)
    decisions = rank(assigned(model, values), order, None)
    got = {d.edge: d.effect for d in decisions}
    assert [got[edge] for edge in order][: len(expected)] == expected


@pytest.mark.parametrize("n_edges", [0, 1, 7, 46])
def test_n_edges_is_the_size_of_the_circuit(n_edges: int) -> None:
    result = discover(small_edges(), loader(), method="eap-ig", n_edges=n_edges)
    assert len(result.circuit) == n_edges
    assert result.settings["n_edges"] == n_edges
    magnitudes = [abs(d.effect) for d in result.decisions]
    assert magnitudes == sorted(magnitudes, reverse=True)
    assert [d.kept for d in result.decisions] == [i < n_edges for i in range(46)]


# Settings and stats -------------------------------------------------------------------------------


def test_the_settings_say_what_was_done() -> None:
    model, prompts = small_edges(), loader()
    chosen = pahq.PrecisionConfig(low="fp8_e5m2", mlp="fp32", guard=0.5)
    result = discover(model, prompts, threshold=0.02, precision=chosen, batches=None, seed=4)
    settings = dict(result.settings)
    precision = settings.pop("precision")
    assert precision["low"] == "fp8_e5m2" and precision["guard"] == 0.5
    assert settings == {
        "method": "pahq", "scored": False, "ablation": "resample", "batches": None, "seed": 4,
        "threshold": 0.02, "metric": "kl_div", "order": "canonical",
        "engine": "incremental",
    }  # fmt: skip
    assert discover(model, prompts, method="acdc").settings["precision"] is None


@pytest.mark.parametrize("engine", ["host", "incremental"])
def test_the_stats_of_a_search(engine: str) -> None:
    model, prompts = small_edges(), loader()
    exact, mixed = (
        discover(model, prompts, method=method, threshold=0.003, engine=engine).stats
        for method in ("acdc", "pahq")
    )
    assert exact.evaluations > 10 and mixed.evaluations > exact.evaluations
    assert exact.re_evaluations == 0 < mixed.re_evaluations <= len(model.edges)
    assert exact.guard == {} and set(mixed.guard) == {"relative", "floor", "widened", "drift"}
    for stats in (exact, mixed):
        assert stats.seconds > 0 and stats.forward_equivalents > 0
        assert stats.peak_bytes > 2**20
        assert isinstance(stats.evaluations, int) and isinstance(stats.peak_bytes, int)


def test_re_evaluated_edges_are_exact() -> None:
    model, prompts = small_edges(), loader()
    result = discover(model, prompts, threshold=0.3)  # keeps few: where most are kept none is screened
    exact = sum(decision.exact for decision in result.decisions)
    assert 0 < exact < len(result.decisions)
    all_exact = pahq.PrecisionConfig(low="int8", guard=math.inf)
    everything = discover(model, prompts, threshold=0.003, precision=all_exact)
    assert all(decision.exact for decision in everything.decisions)
    assert (everything.stats.re_evaluations, everything.stats.guard) == (0, {})  # nothing was screened


def test_scoring_methods_evaluate_nothing() -> None:
    stats = discover(small_edges(), loader(), method="eap").stats
    assert (stats.evaluations, stats.re_evaluations, stats.guard) == (0, 0, {})
    assert stats.seconds > 0


@pytest.fixture(autouse=True)
def _generators_as_before() -> Iterator[None]:
    python, pytorch = random.getstate(), torch.get_rng_state()
    yield
    random.setstate(python)
    torch.set_rng_state(pytorch)


def test_corrupt_prompts_that_equal_the_clean_ones_leave_no_circuit() -> None:
    prompts = loader()
    prompts.dataset.corrupt_prompts = tokens()  # type: ignore[attr-defined]
    result = discover(small_edges(), prompts, method="acdc", threshold=1e-6)
    assert result.circuit == set()
    assert all(decision.effect == pytest.approx(0, abs=1e-6) for decision in result.decisions)


def test_the_host_engine_takes_clean_runs_in_the_models_own_precision() -> None:
    """Else exact decisions would be measured against what the low precision makes of the prompts."""
    model, prompts = small_edges(), loader()
    low = pahq.PrecisionConfig(low="fp8_e5m2", mlp="fp8_e5m2", scale="tensor", policy="uniform")
    acdc = discover(model, prompts, method="acdc", threshold=0.003, engine="host")
    mixed = discover(model, prompts, threshold=0.003, engine="host", precision=low)
    exact = [d for d in mixed.decisions if d.exact]
    assert exact and mixed.circuit == acdc.circuit
    effects = {d.edge: d.effect for d in acdc.decisions}
    for decision in exact:
        assert decision.effect == pytest.approx(effects[decision.edge], rel=1e-3, abs=1e-6)
