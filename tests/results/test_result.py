"""A result: its circuit, the scores that the host ranks, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from auto_circuit.prune import run_circuits
from auto_circuit.types import Edge, PatchType
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import desc_prune_scores, prune_scores_threshold

import pahq_plugin as pahq
from pahq_plugin.errors import ResultError
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.result import Discovery, Stats
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader, patchable, small_model, transformer

SEARCH = {"method": "acdc", "threshold": 0.01, "metric": "mse", "ablation": "resample",
          "scored": False, "seed": 0, "precision": None}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> PatchableModel:
    return small_model()


@pytest.fixture(scope="module")
def found(model: PatchableModel) -> Discovery:
    int8 = pahq.PrecisionConfig(low="int8", mlp="int8")
    result = pahq.discover(model, loader(), threshold=0.01, metric="mse", precision=int8, progress=False)
    assert 0.02 < len(result.circuit) / len(result.decisions) < 0.6
    assert result.stats.guard and not all(decision.exact for decision in result.decisions)
    return result


def made_up(model: PatchableModel, effects: list[float], threshold: float, **settings: Any) -> Discovery:
    """A result with the given effects, in a random order of the edges; the others have none."""
    edges = canonical_order(model)
    random.Random(5).shuffle(edges)
    padded = [*effects, *[0.0] * (len(edges) - len(effects))]
    decisions = tuple(
        Decision(edge, effect, effect >= threshold, exact=True)
        for edge, effect in zip(edges, padded, strict=True)
    )
    return Discovery(decisions, SEARCH | {"threshold": threshold} | settings, Stats(), model)


def top(result: Discovery, count: int) -> set[Edge]:
    """The edges that the host takes for the top ``count``."""
    scores = result.prune_scores
    least = prune_scores_threshold(desc_prune_scores(scores), count)
    return {edge for edge in result.model.edges if abs(edge.prune_score(scores)) >= least}


def assert_ranks_the_circuit(result: Discovery) -> None:
    """The host's top ``len(circuit)`` are the circuit, and ``run_circuits`` runs exactly that."""
    scores, circuit = result.prune_scores, result.circuit
    assert scores.keys() == result.model.patch_masks.keys()
    assert all(bool(values.isfinite().all()) for values in scores.values())
    assert top(result, len(circuit)) == circuit
    run_model = small_model() if result.model.seq_len is None else patchable(transformer(), seq_len=6)
    outputs = run_circuits(run_model, loader(), [len(circuit)], scores, PatchType.TREE_PATCH)
    assert list(outputs) == [len(circuit)]
    patched = {edge for edge in run_model.edges if edge.patch_mask(run_model)[edge.patch_idx] != 0}
    assert patched == run_model.edges - circuit


def test_the_circuit_holds_the_kept_edges(found: Discovery) -> None:
    assert found.circuit == {d.edge for d in found.decisions if d.effect >= 0.01}
    assert found.circuit <= found.model.edges
    assert {decision.edge for decision in found.decisions} == found.model.edges
    assert len(found.decisions) == len(found.model.edges)


def test_the_scores_of_a_search_are_its_effects(found: Discovery) -> None:
    scores = found.prune_scores
    for decision in found.decisions:
        score = decision.edge.prune_score(scores).item()
        assert score == pytest.approx(max(decision.effect, 0.0), rel=1e-6)
        assert score >= 0
    assert any(decision.effect < 0 for decision in found.decisions)
    assert_ranks_the_circuit(found)


def test_scores_of_single_positions() -> None:
    positional = patchable(transformer(), seq_len=6)
    result = pahq.discover(
        positional, loader(), method="acdc", threshold=0.003, metric="mse", progress=False
    )
    assert 0 < len(result.circuit) < len(result.decisions) == len(positional.edges) == 6 * 110
    assert_ranks_the_circuit(result)


TIES = {
    "the same FP32 number": ([1.0, 1.0 - 2**-30, 1.0 - 2**-40], 1.0),
    "several below": ([0.3, 0.1, 0.1 - 1e-12, 0.1 - 1e-11, 0.1 - 1e-13, 0.05], 0.1),
    "rounded up to the kept": ([0.1 + 1e-12, 0.1 - 1e-17, 0.1 - 1e-12], 0.1),
    "next to each other": ([1.0, float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))], 1.0),
    "equal kept ones": ([0.5, 0.5, 0.5, 0.5 - 1e-12, 0.5 - 1e-12], 0.5),
    "large": ([1e6 + 1e-3, 1e6 - 1e-3], 1e6),
    "small": ([1e-30, 1e-30 - 1e-40], 1e-30),
    "negative": ([0.2, -5.0, -0.3, 0.1], 0.15),
    "none kept": ([0.2, 0.1, -3.0], 0.5),
    "only one": ([0.7], 0.7),
    "all kept": ([0.7] * 110, 0.7),
}


@pytest.mark.parametrize("effects", TIES)
def test_the_host_ranks_the_circuit_where_rounding_ties(model: PatchableModel, effects: str) -> None:
    result = made_up(model, *TIES[effects])
    assert_ranks_the_circuit(result)


@pytest.mark.parametrize(
    ("effects", "threshold"),
    [
        pytest.param([1e300, 1.0], 0.5, id="beyond FP32"),
        pytest.param([2e-50, 1e-50], 1.5e-50, id="below FP32"),
    ],
)
def test_the_host_ranks_effects_that_fp32_cannot_hold(
    model: PatchableModel, effects: list[float], threshold: float
) -> None:
    assert_ranks_the_circuit(made_up(model, effects, threshold))


@pytest.mark.parametrize("seed", range(5))
def test_the_host_ranks_random_near_ties(model: PatchableModel, seed: int) -> None:
    draw = random.Random(seed)
    effects = [0.01 * (1 + draw.choice((-1, 1, 1)) * 10 ** draw.uniform(-17, -5)) for _ in range(60)]
    result = made_up(model, effects, 0.01)
    assert 0 < len(result.circuit) < 60
    assert_ranks_the_circuit(result)


def test_scores_of_a_double_model_are_double() -> None:
    double = small_model(dtype=torch.float64)
    result = pahq.discover(double, loader(), method="acdc", threshold=0.01, metric="mse", progress=False)
    assert 0 < len(result.circuit) < len(result.decisions)
    assert top(result, len(result.circuit)) == result.circuit
    for values in result.prune_scores.values():
        assert values.dtype == next(iter(double.patch_masks.values())).dtype


def test_scores_of_a_scoring_method_keep_their_sign(model: PatchableModel) -> None:
    result = pahq.discover(model, loader(), method="eap", n_edges=20, progress=False)
    scores = result.prune_scores
    assert len(result.circuit) == 20
    assert {math.copysign(1, d.effect) for d in result.decisions} == {-1, 1}
    assert all(d.edge.prune_score(scores).item() == d.effect for d in result.decisions)
    assert_ranks_the_circuit(result)


def test_scores_are_no_view_of_the_masks(found: Discovery) -> None:
    scores = dataclasses.replace(found).prune_scores
    masks = {mask.data_ptr() for mask in found.model.patch_masks.values()}
    assert not masks & {values.data_ptr() for values in scores.values()}


def test_a_round_trip_gives_an_equal_result(found: Discovery, tmp_path: Path) -> None:
    assert found.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    for path in (tmp_path / "deep" / "folder", tmp_path / "deep" / "folder" / "result.json"):
        read = Discovery.load(path, found.model)
        assert read == found
        assert read.circuit == found.circuit and read.stats == found.stats
        for name, values in found.prune_scores.items():
            assert torch.equal(read.prune_scores[name], values)


def test_a_result_is_read_on_an_equal_model(found: Discovery, tmp_path: Path) -> None:
    twin = small_model()
    read = Discovery.load(found.save(tmp_path), twin)
    assert read.model is twin and read.decisions == found.decisions
    read.save(tmp_path / "again")
    assert (tmp_path / "again" / "result.json").read_bytes() == (tmp_path / "result.json").read_bytes()


def test_a_positional_round_trip(tmp_path: Path) -> None:
    positional = patchable(transformer(), seq_len=6)
    result = pahq.discover(positional, loader(), method="acdc", threshold=0.003, progress=False)
    read = Discovery.load(result.save(tmp_path), positional)
    assert read == result and {d.edge.seq_idx for d in read.decisions} == set(range(6))


def test_effects_survive_to_the_last_bit(model: PatchableModel, tmp_path: Path) -> None:
    result = made_up(model, [0.1 + 0.2, 1 / 3, 5e-324, -1e-300, 0.01 * (1 + 2**-52)], 0.01)
    read = Discovery.load(result.save(tmp_path), model)
    assert [d.effect for d in read.decisions] == [d.effect for d in result.decisions]
    assert read.circuit == result.circuit


def test_the_folder_holds_two_files(found: Discovery, tmp_path: Path) -> None:
    found.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "run.json"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["stats"] == dataclasses.asdict(found.stats)
    assert run["stats"]["seconds"] > 0 and run["versions"]["torch"] == version("torch")


def test_another_result_is_not_replaced_unasked(
    found: Discovery, model: PatchableModel, tmp_path: Path
) -> None:
    other = made_up(model, [0.1, 0.2, 0.3, 0.4, 0.5], 0.01)
    found.save(tmp_path)
    found.save(tmp_path)  # the same
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(ResultError, match="another"):
        other.save(tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    other.save(tmp_path, force=True)
    assert Discovery.load(tmp_path, model) == other
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError, match="another"):
        other.save(tmp_path)
    assert (tmp_path / "result.json").read_text() == "{"


def test_no_timings_lie_in_the_result(found: Discovery, tmp_path: Path) -> None:
    """The same result with other costs gives the same bytes."""
    found.save(tmp_path / "a")
    slow = Stats(9, 9, 1234.5, 10**12, 7.0, {"relative": 1.0})
    dataclasses.replace(found, stats=slow).save(tmp_path / "b")
    texts = [(tmp_path / name / "result.json").read_bytes() for name in "ab"]
    assert texts[0] == texts[1]
    for word in (b"seconds", b"peak", b"1234.5", b"threads", b"device", b"version"):
        assert word not in texts[1], word
    assert b"1234.5" in (tmp_path / "b" / "run.json").read_bytes()


def test_a_result_without_its_costs_is_read(found: Discovery, tmp_path: Path) -> None:
    found.save(tmp_path)
    (tmp_path / "run.json").unlink()
    read = Discovery.load(tmp_path, found.model)
    assert read.decisions == found.decisions and read.stats == Stats()


def test_a_torn_write_leaves_the_old_result(
    model: PatchableModel, found: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found.save(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        made_up(model, [1.0], 0.5).save(tmp_path, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    monkeypatch.undo()
    assert Discovery.load(tmp_path, found.model) == found


def test_a_file_is_no_folder(found: Discovery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultError, match="folder"):
        found.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.full
def test_equal_runs_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """The host's set of edges is in another order in each process: ours is not."""
    arguments = ["discover", "tracr-xproportion", "--threshold", "0.01", "--seed", "3", "--json"]
    subprocess.run(
        [sys.executable, "-m", "pahq_plugin", *arguments, "--out", str(tmp_path / "there")],
        env=os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    problem = pahq.load_problem("tracr-xproportion", seed=3)
    pahq.discover(problem.model, problem.train_loader, threshold=0.01, metric="mse", seed=3).save(
        tmp_path / "here"
    )
    there, here = ((tmp_path / name / "result.json").read_bytes() for name in ("there", "here"))
    assert there == here
    record = json.loads(here)
    assert record["settings"]["seed"] == 3
    assert 0 < sum(entry["kept"] for entry in record["decisions"]) < len(record["decisions"])


def test_equal_runs_give_equal_bytes_in_one_process(tmp_path: Path) -> None:
    for name in "ab":
        result = pahq.discover(small_model(), loader(), threshold=0.01, metric="mse", progress=False)
        result.save(tmp_path / name)
    texts = [(tmp_path / name / "result.json").read_bytes() for name in "ab"]
    assert texts[0] == texts[1]
