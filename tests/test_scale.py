"""The scale benchmark: exact sizes, a fit that finds what it was made from, predictions that say so."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.models import CASES, Case, load
from benchmarks.scale import __main__ as scale
from benchmarks.scale import cases
from benchmarks.scale.check import earlier_runs, widened
from benchmarks.scale.counting import Counting
from benchmarks.scale.fit import (
    CostModel,
    Law,
    Observation,
    fit,
    interval,
    largest_left_out,
    left_out,
    resampled,
    unit,
    whole,
)
from benchmarks.scale.measure import MeasureError, alone
from benchmarks.scale.predict import fitted, predictions, work_budget
from benchmarks.scale.shapes import Shape, gpt2_small, gpt2_xl, llama_8b
from benchmarks.scale.show import duration
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType
from pahq_plugin.host.lending import borrowed
from pahq_plugin.metrics import kl_div

# Sizes ---------------------------------------------------------------------------------------------


def test_sizes_of_published_models() -> None:
    assert gpt2_small(8, 16).edges == 32_491
    assert gpt2_small(8, 16).published_parameters == 124_439_808
    assert gpt2_xl(8, 16).published_parameters == pytest.approx(1.56e9, rel=0.01)
    assert llama_8b(8, 16).published_parameters == pytest.approx(8.0e9, rel=0.01)
    repeated = 32 * 2 * 4096 * (4096 - 1024)  # keys and values of 32 heads instead of 8
    biases = 32 * (3 * 4096 + 14336 + 2 * 4096) + 128_256
    llama = llama_8b(8, 16)
    assert llama.parameters - llama.published_parameters == repeated + biases


@pytest.mark.parametrize("gated", [False, True])
def test_sizes_are_those_of_the_model(gated: bool) -> None:
    case = Case("x", 0.1, layers=3, heads=2, width=16, d_mlp=40, vocabulary=20, prompts=3, length=5)
    case = replace(case, gated=gated)
    model, loader = load(case)
    shape = Shape.of(case)
    assert shape.edges == len(model.edges)
    assert shape.nodes == len(model.srcs)
    masks = sum(mask.numel() for mask in model.patch_masks.values())
    assert masks == shape.edges
    assert shape.parameters + masks == sum(p.numel() for p in model.wrapped_model.parameters())
    with borrowed(model):
        batch = next(iter(loader))
        engine = IncrementalEngine(
            Question(model, loader, [batch], AblationType.RESAMPLE, ("kl_div", kl_div))
        )
        assert shape.cache_bytes == engine.cache_bytes


def test_products_of_a_forward() -> None:
    shape = Shape.of(Case("x", 0.1, layers=1, heads=1, width=4, d_mlp=8, prompts=1, length=2))
    # Per token: 4 projections of 4 x 4, scores and values over 2 tokens, an MLP of 2 matrices of 4 x 8.
    assert shape.forward_products == 2 * (4 * 16 + 2 * 4 * 2 + 2 * 32)


def test_operations_are_counted() -> None:
    x, y = torch.ones(2, 3), torch.ones(3, 5)
    with Counting() as counting:
        _ = (x @ y).T.relu()
        _ = torch.nn.functional.linear(x, y.T, torch.zeros(5))
        _ = torch.ones(4, 2, 3) @ torch.ones(4, 3, 5)
    assert counting.counts.products == 2 * 3 * 5 * (1 + 1 + 4)
    # Two products of 2 x 5, relu, zeros; two ones and their product.
    assert counting.counts.bytes == 4 * (3 * 2 * 5 + 5 + 4 * (6 + 15 + 10))
    assert counting.counts.operations == 7


# The fit -------------------------------------------------------------------------------------------

TRUE = CostModel(
    {
        "rows": Law(-1.0, 0.4, 0.1, 0.0),
        "products": Law(-1.5, 1.2, 0.05, -0.8),
        "bytes": Law(0.5, 1.0, 0.0, -0.3),
        "operations": Law(2.0, 0.2, -0.2, 0.1),
    },
    np.array([3e-11, 0.0, 4e-10, 8e-6]),
    0.0,
)


def made(noise: float = 0.0) -> list[Observation]:
    """Searches that follow `TRUE`, of the shapes that are measured."""
    draw = np.random.default_rng(0)
    found = []
    for setting in cases.settings():
        if setting.axis == "kind":
            continue
        shape, per_node = Shape.of(setting.case), setting.per_node * draw.uniform(0.9, 1.1)
        counts = {
            name: law.per_edge(shape, per_node) * unit(name, shape) * shape.edges
            for name, law in TRUE.laws.items()
        }
        counts["products"] += counts["rows"] * shape.unembedding_products
        counts["int8_products"] = 0.0
        seen = Observation(setting.axis, shape, per_node, counts, 1.0)
        seconds = float(TRUE.rates @ seen.costs) * math.exp(noise * draw.normal())
        found.append(replace(seen, cpu_seconds=seconds))
    return found


def test_the_fit_finds_what_the_searches_were_made_from() -> None:
    model = fit(made())
    np.testing.assert_allclose(model.rates, TRUE.rates, rtol=1e-3, atol=1e-15)
    for name, law in TRUE.laws.items():
        np.testing.assert_allclose(
            list(asdict(model.laws[name]).values()), list(asdict(law).values()), atol=1e-6
        )
    for shape in (gpt2_small(8, 16), gpt2_xl(8, 16), llama_8b(8, 16)):
        assert model.seconds(shape, 2.0) == pytest.approx(TRUE.seconds(shape, 2.0), rel=1e-3)


def test_errors_of_unseen_searches() -> None:
    exact, noisy = made(), made(0.2)
    unseen = left_out(exact)
    assert max(map(abs, unseen.pop("length"))) > 0.1  # nothing else tells what it does
    assert max(abs(e) for errors in unseen.values() for e in errors) < 1e-3
    assert abs(largest_left_out(exact) or 0.0) < 1e-3
    assert max(abs(e) for errors in left_out(noisy).values() for e in errors) > 0.05
    assert "base" not in left_out(noisy)


def test_intervals_hold_the_truth_and_widen_with_noise() -> None:
    shape = gpt2_xl(8, 16)
    low, high = interval(resampled(made(0.2)), shape, 2.0)
    assert low < TRUE.seconds(shape, 2.0) < high
    narrow, wide = interval(resampled(made(0.01)), shape, 2.0)
    assert wide / narrow < high / low


def test_no_edge_takes_more_than_the_whole_model() -> None:
    shape, model = gpt2_xl(8, 16), fit(made())
    found = model.quantities(shape, 1e6)
    assert found["bytes"] == pytest.approx(shape.edges * whole("bytes", shape))
    assert found["rows"] == shape.edges
    assert model.seconds(shape, 1e6) == pytest.approx(model.most_seconds(shape, 1e6))
    assert model.seconds(shape, 2.0) < model.most_seconds(shape, 2.0)


def test_processes_share_all_but_the_operations() -> None:
    shape, model = gpt2_xl(8, 16), fit(made())
    fixed = model.quantities(shape, 2.0)["operations"] * model.rates[-1]
    alone, shared = model.seconds(shape, 2.0), model.seconds(shape, 2.0, processes=8)
    assert shared - fixed == pytest.approx((alone - fixed) / 8)


def test_too_few_searches() -> None:
    with pytest.raises(ValueError, match="3 searches are too few"):
        fit(made()[:3])


# Predictions ---------------------------------------------------------------------------------------


def as_row(seen: Observation) -> dict[str, Any]:
    one = {
        "counts": seen.counts,
        "cpu_seconds": {"median": seen.cpu_seconds},
        "memory_above": seen.shape.cache_bytes + 2**24,
    }
    return {
        "predicted": False,
        "axis": seen.axis,
        "shape": asdict(seen.shape),
        "kept_per_node": seen.per_node,
        "methods": {"acdc": one, "pahq": one},
    }


CONTEXT = {"cpu": "a CPU", "screening_bits": (16, 0), "edge_bytes": {"model": 500.0, "search": 0.0}}


def test_predictions_are_marked_and_say_what_they_assume() -> None:
    rows = [as_row(seen) for seen in made()]
    found = predictions(rows, [gpt2_xl(8, 16), llama_8b(8, 16)], 2.0, CONTEXT)
    assert len(found) == 2 * 2 * 2  # methods, and processes 1 and 8
    for row in found:
        assert row["predicted"] is True
        assert row["interval"][0] <= row["cpu_seconds"] <= row["interval"][1]
        assert "2 edges kept for each node" in row["assumes"] and "a CPU" in row["assumes"]
        assert row["beyond"]["parameters"] > 100
    json.dumps(found, allow_nan=False)


def test_memory_is_the_sum_of_its_parts() -> None:
    rows = [as_row(seen) for seen in made()]
    acdc, _, pahq, _ = predictions(rows, [shape := gpt2_xl(8, 16)], 2.0, CONTEXT)
    known = shape.weight_bytes + 504 * shape.edges + shape.cache_bytes
    assert acdc["memory"]["bytes"] == pytest.approx(known + work_budget("acdc"))
    assert acdc["memory"]["interval"][0] == pytest.approx(known + 2**24)  # as the rows measured it
    heads = 48 * 4 * 1600 * 1600 * 2  # copies in 16 bits
    assert pahq["memory"]["parts"]["copies"] == heads
    assert acdc["memory"]["interval"][1] > acdc["memory"]["bytes"]


def test_a_model_of_another_kind_is_checked_on_and_not_fitted() -> None:
    rows = [as_row(seen) for seen in made()]
    rows.append(rows[0] | {"axis": "kind", "shape": rows[0]["shape"] | {"name": "other"}})
    rows[-1]["methods"] = {"acdc": rows[0]["methods"]["acdc"] | {"cpu_seconds": {"median": 1e6}}}
    model = fitted(rows, "acdc")
    assert model["predicted_over_measured"]["other"] < 1e-3
    assert model["off_median"] == pytest.approx(1.0, abs=1e-3)


def test_earlier_runs_are_held_against_each_other(tmp_path: Path) -> None:
    """On a machine twice as fast, but for the large one, which took as long again."""
    path = tmp_path / "speed.json"
    rows = {}
    for name, slower in (("small-shape", 1), ("medium-shape", 1), ("gpt2-shape", 2)):
        case = CASES[name]
        shape = Shape.of(case)
        seconds = TRUE.seconds(shape, 100 / shape.nodes) / 2 * slower
        rows[name] = {"case": asdict(case), "kept": 100, "turns": [{"ours": seconds}]}
    rows["ioi"] = rows["gpt2-shape"] | {"case": asdict(CASES["ioi"])}
    path.write_text(json.dumps(rows))
    found = earlier_runs(TRUE, path)
    assert found["machine"] == pytest.approx(2)
    assert found["near"] == pytest.approx({"small-shape": 1, "medium-shape": 1})
    assert found["far"] == pytest.approx({"gpt2-shape": 0.5})
    assert widened((1.0, 3.0), found) == pytest.approx((1.0, 6.0))
    assert widened((1.0, 3.0), {}) == (1.0, 3.0)
    assert earlier_runs(TRUE, tmp_path / "none.json") == {}


def test_durations_are_readable() -> None:
    assert duration(1.5) == "1.50 s"
    assert duration(7200) == "2.0 h"
    assert duration(3 * 365.25 * 86400) == "3.0 years"


# The command ---------------------------------------------------------------------------------------


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in this process, on a few tiny models, by one process."""

    def here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    small = [
        replace(setting, case=replace(setting.case, layers=1 + i % 2, width=16, d_mlp=32, vocabulary=20))
        for i, setting in enumerate(cases.quick_settings())
    ]
    monkeypatch.setattr(scale, "alone", here)
    monkeypatch.setattr(scale, "pin", lambda threads: None)
    monkeypatch.setattr(scale, "PROCESSES", ())
    monkeypatch.setattr(scale, "quick_settings", lambda: small)
    monkeypatch.setattr("benchmarks.scale.fit.RESAMPLED", 20)
    monkeypatch.setattr("benchmarks.scale.measure.MOST_TRIES", 1)


@pytest.mark.full
@pytest.mark.usefixtures("inline")
def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scale.json"
    assert scale.main(["--quick", "--repeat", "1", "--out", str(out), "--note", "a test"]) == 0
    results = json.loads(out.read_text())
    assert [row["predicted"] for row in results["rows"]] == [False] * len(results["rows"])
    assert all(row["predicted"] for row in results["predictions"])
    assert {row["name"] for row in results["predictions"]} == {"GPT-2 small", "GPT-2 XL", "Llama 3 8B"}
    assert results["context"]["note"] == "a test" and results["context"]["versions"]["torch"]
    for row in results["rows"]:
        assert row["methods"]["acdc"]["counts"]["products"] > 0
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
    printed = capsys.readouterr().out
    assert "Predictions, not measurements" in printed and "Measured" in printed


@pytest.mark.usefixtures("inline")
def test_what_was_measured_stays_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, done = scale.measure, []

    def stopped(*arguments: Any) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(measure(*arguments))
        return done[-1]

    monkeypatch.setattr(scale, "measure", stopped)
    out = tmp_path / "scale.json"
    assert scale.main(["--quick", "--repeat", "1", "--out", str(out)]) == 130
    assert "stopped" in capsys.readouterr().err
    assert len(json.loads(out.read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick"], "pass --out FILE"),
        (["--repeat", "0"], "0 must be at least 1"),
        (["--out", "figures.txt"], "must end in .json"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        scale.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.full
def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(MeasureError, match="the process that measured 3 died"):
        alone(os._exit, 3)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_command_in_processes_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.scale", "--quick", "--repeat", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(out.read_text())
    assert [row["processes"] for row in results["ranks"]] == [1, 2]
    assert results["ranks"][0]["kept"] == results["ranks"][1]["kept"]
    assert "Predictions, not measurements" in done.stdout
