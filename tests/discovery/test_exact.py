"""Edge activation patching by name: effects, circuits, checkpoints, precision and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from auto_circuit.types import AblationType
from scipy.stats import spearmanr
from torch import Tensor

import pahq_plugin as pahq
from pahq_plugin.discovery.effects_file import EffectsFile, Measured
from pahq_plugin.engines.incremental import budget
from pahq_plugin.errors import CheckpointError, ConfigError, MetricError, ModelError
from pahq_plugin.labels import edge_label
from tests.helpers.alone import on_host, wrong
from tests.helpers.architectures import build, micro_model, random_architecture
from tests.helpers.searches import by_edge, discover, small_edges
from tests.helpers.small import loader, small_model

INT8 = pahq.PrecisionConfig(low="int8", mlp="int8")


def exact(model: Any, prompts: Any, **settings: Any) -> pahq.Discovery:
    return discover(model, prompts, method="eactp", **settings)


@pytest.mark.parametrize("engine", ["auto", "host"])
@pytest.mark.parametrize("seed", [3, 5])
def test_effects_are_those_of_full_forwards(seed: int, engine: str) -> None:
    drawn = random_architecture(seed, max_edges=90)
    model, prompts = build(drawn)
    asked = {"metric": drawn.metric, "ablation": drawn.ablation, "batches": None}
    result = exact(model, prompts, engine=engine, **asked)
    assert result.settings["engine"] == ("host" if engine == "host" else "incremental")
    differing = wrong(by_edge(result), on_host(model, prompts, model.edges, **asked))
    assert not differing, differing


def test_effects_are_signed_and_the_circuit_is_the_largest_by_magnitude() -> None:
    model, prompts = small_edges(), loader()
    result = exact(model, prompts, n_edges=9, metric="logit_diff")
    effects = by_edge(result)
    assert min(effects.values()) < 0 < max(effects.values())
    ranked = sorted(model.edges, key=lambda edge: -abs(effects[edge]))
    assert result.circuit == set(ranked[:9])
    assert [d.edge for d in result.decisions] == sorted(
        (d.edge for d in result.decisions), key=lambda edge: -abs(effects[edge])
    )
    assert all(d.exact for d in result.decisions)
    assert result.settings["n_edges"] == 9 and result.settings["metric"] == "logit_diff"
    scores = result.prune_scores
    assert all(
        math.isclose(float(edge.prune_score(scores)), effects[edge], rel_tol=1e-6) for edge in ranked[:9]
    )


@pytest.mark.parametrize("n_edges", [None, 7, 9])
def test_edges_without_an_effect_are_never_kept(n_edges: int | None) -> None:
    """Two of the nine effects of this model are 0."""
    model, prompts = micro_model()
    result = exact(model, prompts, n_edges=n_edges, metric="mse", batches=None)
    gone = {edge_label(d.edge) for d in result.decisions if not d.kept}
    assert gone == {"Resid Start->A0.0.Q", "Resid Start->A0.0.K"}


def test_no_edges_at_all_can_be_asked_for() -> None:
    assert not exact(small_edges(), loader(), n_edges=0).circuit


def test_edges_at_positions_and_joint_inputs() -> None:
    drawn = next(
        a
        for a in (random_architecture(seed, max_edges=80) for seed in range(200))
        if a.positional_edges and not a.separate_qkv
    )
    model, prompts = build(drawn)
    found = by_edge(exact(model, prompts, metric="mse"))
    differing = wrong(found, on_host(model, prompts, model.edges, metric="mse"))
    assert not differing and {edge.seq_idx for edge in found} > {1, 2}


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stopping_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the run break off when its checkpoint has been offered progress ``count`` times."""
    original, seen = EffectsFile.take, [0]

    def take(self: EffectsFile, progress: Measured) -> None:
        original(self, progress)
        seen[0] += 1
        if seen[0] == count:
            raise Stopped

    monkeypatch.setattr(EffectsFile, "take", take)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"engine": "host", "metric": "mse"},
        {"precision": INT8, "refine": 11},
        {"ablation": AblationType.TOKENWISE_MEAN_CORRUPT},
    ],
    ids=["plain", "host", "int8", "mean"],
)
def test_a_stopped_run_goes_on_to_the_same_effects(
    settings: dict[str, Any], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budget.LONE_ROW_BYTES, "cpu", 200_000)
    whole = exact(small_edges(), loader(), **settings)
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as context, pytest.raises(Stopped):
        stopping_after(count, context)
        exact(small_edges(), loader(), checkpoint=path, **settings)
    rest = exact(small_edges(), loader(), checkpoint=path, **settings)
    names = [(d.edge.name, d.effect, d.exact) for d in whole.decisions]
    assert [(d.edge.name, d.effect, d.exact) for d in rest.decisions] == names
    assert rest.stats.evaluations >= whole.stats.evaluations
    again = exact(small_edges(), loader(), checkpoint=path, **settings)
    assert [(d.edge.name, d.effect, d.exact) for d in again.decisions] == names


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metric": "mse"}, "metric"),
        ({"ablation": "zero"}, "ablation"),
        ({"precision": INT8}, "precision"),
        ({"method": "acdc"}, "expected schema 'pahq-checkpoint/1'"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    exact(small_edges(), loader(), checkpoint=path)
    with pytest.raises(CheckpointError, match=said):
        discover(small_edges(), loader(), **{"method": "eactp", "checkpoint": path, **changed})


def test_another_circuit_size_goes_on_from_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    exact(small_edges(), loader(), n_edges=3, checkpoint=path)
    result = exact(small_edges(), loader(), n_edges=5, checkpoint=path)
    assert len(result.circuit) == 5


def test_screened_effects_are_refined_where_they_are_largest() -> None:
    model, prompts = small_model(), loader()
    full = by_edge(exact(model, prompts))
    result = exact(model, prompts, n_edges=10, precision=INT8)
    refined = [d for d in result.decisions if d.exact]
    assert len(refined) == 20 == result.settings["refine"] == result.stats.re_evaluations
    assert all(d.effect == pytest.approx(full[d.edge], rel=1e-4, abs=1e-7) for d in refined)
    assert result.circuit == {d.edge for d in exact(model, prompts, n_edges=10).decisions if d.kept}
    screened = {d.edge: d.effect for d in result.decisions if not d.exact}
    assert any(effect != full[edge] for edge, effect in screened.items())
    both = [(abs(effect), abs(full[edge])) for edge, effect in screened.items()]
    assert spearmanr(*zip(*both, strict=True)).statistic > 0.98
    assert result.settings["precision"]["low"] == "int8"


@pytest.mark.parametrize(
    ("settings", "refined"), [({}, 5), ({"refine": 7}, 7), ({"refine": 0}, 0), ({"n_edges": 40}, 46)]
)
def test_how_many_are_refined(settings: dict[str, Any], refined: int) -> None:
    """Of 46 edges: a tenth, as many as asked for, or twice the circuit."""
    result = exact(small_edges(), loader(), precision=INT8, **settings)
    assert sum(d.exact for d in result.decisions) == refined


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refine": 3}, "refine needs precision"),
        ({"refine": -1, "precision": INT8}, "refine=-1 must be an integer between 0 and 46"),
        ({"refine": 47, "precision": INT8}, "between 0 and 46"),
        ({"threshold": 0.1}, "'eactp' cannot use threshold"),
        ({"order": "given"}, "'eactp' cannot use order"),
        ({"precision": pahq.PrecisionConfig(policy="hybrid")}, "cannot choose formats"),
        ({"method": "acdc", "refine": 3}, "'acdc' cannot use refine"),
    ],
)
def test_what_it_cannot_use_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        discover(small_edges(), loader(), **{"method": "eactp", **settings})


@pytest.mark.parametrize("engine", ["auto", "host"])
def test_a_loss_that_is_not_finite_names_its_edge(engine: str) -> None:
    model, prompts = small_edges(), loader()
    effects = by_edge(exact(model, prompts, metric="mse"))
    edge = sorted(effects, key=lambda e: effects[e])[-3]
    bad = effects[edge]

    def failing(logits: Tensor, clean_logits: Tensor, batch: object) -> Tensor:
        loss = (logits - clean_logits).square().mean(dim=-1)
        return loss * torch.inf if abs(float(loss.mean()) - bad) < 1e-6 * bad else loss

    with pytest.raises(MetricError, match=f"at edge {edge_label(edge)}: .*inf"):
        exact(model, prompts, metric=failing, engine=engine)


def test_a_memory_limit_gives_the_same_effects() -> None:
    model, prompts = small_edges(), loader()
    free = by_edge(exact(model, prompts))
    result = exact(model, prompts, max_memory="30MB")
    assert by_edge(result) == pytest.approx(free, rel=1e-4, abs=1e-7)
    assert result.stats.memory["max_memory"] == 30_000_000
    with pytest.raises(ConfigError, match="max_memory"):
        exact(model, prompts, max_memory="30MB", engine="host")


def test_a_model_that_is_no_transformer_runs_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.model_utils.micro_model_utils import MicroModel
    from auto_circuit.utils.graph_utils import patchable_model

    inner = MicroModel(2)
    model = patchable_model(inner, factorized=True, device=torch.device("cpu"))
    clean, corrupt = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, -1.0]]])
    dataset = PromptDataset(clean, corrupt, [torch.tensor([0])], [torch.tensor([1])])
    prompts = PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=1, shuffle=False)
    result = exact(model, prompts, metric="mse")
    assert result.settings["engine"] == "host"
    differing = wrong(by_edge(result), on_host(model, prompts, model.edges, metric="mse"))
    assert not differing and len(result.circuit) > 1
    with pytest.raises(ModelError, match="not a transformer"):
        exact(model, prompts, metric="mse", precision=INT8)


def test_the_bar_counts_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from pahq_plugin.discovery import exact as module

    seen: list[tuple[str, int] | int] = []

    @contextmanager
    def bar(label: str, total: int, shown: bool) -> Any:
        seen.append((label, total))
        yield lambda done, note="": seen.append(done)

    monkeypatch.setattr(module, "progress_bar", bar)
    exact(small_edges(), loader(), precision=INT8, refine=4)
    assert seen[0] == ("edges", 50) and seen[-1] == 50 and seen[1:] == sorted(seen[1:], key=int)  # type: ignore[arg-type]


def test_results_are_saved_and_read_again(tmp_path: Path) -> None:
    model = small_edges()
    result = exact(model, loader(), n_edges=5)
    again = pahq.Discovery.load(result.save(tmp_path / "r"), model)
    assert again.decisions == result.decisions and again.circuit == result.circuit
