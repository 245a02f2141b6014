"""Comparisons are of the model that is there, and say what its searches warned of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.compare.plan import Plan, make_plan
from pahq_plugin.compare.run import run_plan
from pahq_plugin.errors import ConfigError
from tests.helpers.small import LENGTH, VOCABULARY, transformer


def prompts(folder: Path, same: bool = False) -> Path:
    draw = torch.Generator().manual_seed(5)
    clean, corrupt = (torch.randint(VOCABULARY, (8, LENGTH), generator=draw).tolist() for _ in range(2))
    entries = [
        {"clean": a, "corrupt": a if same else b, "answers": [1], "wrong_answers": [2]}
        for a, b in zip(clean, corrupt, strict=True)
    ]
    file = folder / "p.json"
    file.write_text(json.dumps({"prompts": entries}))
    return file


def plan_of(model: Path, file: Path) -> Plan:
    problem = {"name": "ioi", "model": str(model), "prompts": str(file), "batch_size": 2}
    return make_plan({"problems": [problem], "methods": ["acdc"], "thresholds": [0.01]}, Path())


def test_another_model_in_the_same_folder_is_searched_anew(tmp_path: Path) -> None:
    model, file = tmp_path / "model", prompts(tmp_path)
    pahq.save_model(transformer(seed=1), model)
    first = plan_of(model, file).searches[0]
    assert plan_of(model, file).searches[0].folder == first.folder
    pahq.save_model(transformer(seed=2), model, force=True)
    second = plan_of(model, file).searches[0]
    assert second.folder != first.folder and second.key() != first.key()


def test_a_model_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    model, file = tmp_path / "model", prompts(tmp_path)
    pahq.save_model(transformer(seed=1), model)
    plan = plan_of(model, file)
    pahq.save_model(transformer(seed=2), model, force=True)
    outcome = run_plan(plan, tmp_path / "out", progress=False)
    (reason,) = outcome.refused.values()
    assert "was changed" in reason


def test_warnings_of_searches_reach_the_reader(tmp_path: Path) -> None:
    model = tmp_path / "model"
    pahq.save_model(transformer(), model)
    outcome = run_plan(plan_of(model, prompts(tmp_path, same=True)), tmp_path / "out", progress=False)
    said = [line for lines in outcome.warned.values() for line in lines]
    assert any("may be the same" in line for line in said)


def test_bos_in_a_plan_is_a_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bos"):
        make_plan({"problems": [{"name": "ioi", "bos": 1}], "methods": ["acdc"]}, tmp_path)


def test_a_known_circuit_is_of_the_published_weights(tmp_path: Path) -> None:
    """Not of whatever bears the name."""
    model = transformer(n_layers=12, n_heads=12, d_head=2, d_model=24, model_name="gpt2")
    pahq.save_model(model, tmp_path / "model")
    problem = pahq.load_problem("ioi", model=tmp_path / "model", prompts=prompts(tmp_path), batch_size=2)
    assert problem.true_edges is None
