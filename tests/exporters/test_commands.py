"""``pahq export``, ``pahq import`` and ``pahq run``: graphs that are checked, circuits as JSON;
errors are one line and exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

import pahq_plugin as pahq
from pahq_exporters import check, export_onnx
from pahq_exporters.commands import export, import_graph, run
from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_plugin.errors import ExportError
from tests.helpers.graph_commands import command, fails
from tests.helpers.refused import Interrupted, untouched
from tests.helpers.small import small_model

app = typer.Typer()
app.command("export")(export)
app.command("import")(import_graph)
app.command("run")(run)


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


def test_the_circuit_of_a_result(tmp_path: Path) -> None:
    problem = pahq.load_problem("ioi")
    result = pahq.discover(problem.model, problem.train_loader, method="acdc", progress=False)
    result.save(tmp_path / "found")
    done = call("export", "ioi", tmp_path / "c.json", "--result", tmp_path / "found")
    assert done.exit_code == 0 and f"{len(result.circuit)} of {len(result.decisions)}" in done.stdout
    assert read_graph_json(tmp_path / "c.json", problem.model).circuit == result.circuit
    failed = call("export", "ioi", tmp_path / "c.onnx", "--result", tmp_path / "found")
    assert failed.exit_code == 1 and ".json" in failed.stderr and not (tmp_path / "c.onnx").exists()


def test_a_circuit_goes_out_and_comes_back(tmp_path: Path) -> None:
    problem = pahq.load_problem("ioi")
    result = pahq.discover(problem.model, problem.train_loader, method="acdc", progress=False)
    write_graph_json(result, tmp_path / "c.json")
    done = call("import", "ioi", tmp_path / "c.json", "--out", tmp_path / "back")
    assert done.exit_code == 0, done.stderr
    assert f"{len(result.circuit)} of 1,519 edges kept by graph-json" in done.stdout
    back = pahq.Discovery.load(tmp_path / "back", problem.model)
    assert back.circuit == result.circuit
    for name, scores in result.prune_scores.items():
        assert torch.equal(scores, back.prune_scores[name])
    again = call("import", "ioi", tmp_path / "c.json", "--out", tmp_path / "back")
    assert again.exit_code == 1 and "--force" in again.stderr
    done = call("import", "ioi", tmp_path / "c.json", "--n-edges", 3, "--json")
    assert sum(entry["kept"] for entry in json.loads(done.stdout)["decisions"]) == 3


def test_a_checked_export(tmp_path: Path) -> None:
    done = call("export", "tracr-xproportion", tmp_path / "g.onnx", "--check", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == (tmp_path / "g.onnx").stat().st_size
    assert [line.split(":")[0] for line in found["check"][:3]] == ["names", "shapes", "meaning"]
    assert "mode memory" in found["check"][-1]


def test_prompts_as_token_ids(tmp_path: Path) -> None:
    """What ``pahq export --ids`` writes, ``pahq run`` reads."""
    graph, ids = tmp_path / "g.onnx", tmp_path / "new" / "ids.json"
    done = call("export", "ioi", graph, "--ids", ids)
    assert done.exit_code == 0, done.stderr
    assert f"pahq run {graph} --prompts {ids} --all" in done.stdout
    batch = next(iter(pahq.load_problem("ioi").train_loader))
    rows = json.loads(ids.read_text())["prompts"]
    assert [row["clean"] for row in rows[: len(batch.clean)]] == batch.clean.tolist()
    problem = pahq.load_problem("ioi")
    assert len(rows) == sum(len(b.clean) for x in (problem.train_loader, problem.test_loader) for b in x)
    assert [row["wrong_answers"] for row in rows[: len(batch.clean)]] == batch.wrong_answers.tolist()
    done = call("run", graph, "--prompts", ids, "--edges", "A0.7->MLP 0", "--limit", 2)
    assert done.exit_code == 0 and "A0.7->MLP 0" in done.stdout
    again = call("export", "ioi", tmp_path / "h.onnx", "--ids", ids)
    assert again.exit_code == 1 and "ids.json" in again.stderr


@pytest.mark.parametrize("problem", ["tracr-reverse", "tracr-xproportion"])
def test_prompts_whose_answers_are_no_tokens_of_one_position(problem: str, tmp_path: Path) -> None:
    graph, ids, found = tmp_path / "g.onnx", tmp_path / "ids.json", tmp_path / "found"
    assert call("export", problem, graph, "--low", "fp32", "--ids", ids).exit_code == 0
    assert set(json.loads(ids.read_text())["prompts"][0]) == {"clean", "corrupt"}
    loaded = pahq.load_problem(problem)
    pahq.discover(loaded.model, loaded.train_loader, method="acdc", metric="mse").save(found)
    done = call("run", graph, "--prompts", ids, "--result", found, "--json")
    assert done.exit_code == 0, done.stderr
    (one,) = json.loads(done.stdout)["runs"]
    assert "logit_diff" not in one and one["edges"]


def test_a_circuit_of_single_positions_runs_on_a_graph_of_them(tmp_path: Path) -> None:
    found, graph, ids = tmp_path / "found", tmp_path / "g.onnx", tmp_path / "ids.json"
    problem = pahq.load_problem("ioi", positional=True)
    result = pahq.discover(problem.model, problem.train_loader, method="eap", n_edges=300)
    result.save(found)
    made = call("export", "ioi", graph, "--positional", "--ids", ids)
    assert made.exit_code == 0, made.stderr
    done = call("run", graph, "--prompts", ids, "--result", found, "--limit", 2, "--json")
    assert done.exit_code == 0, done.stderr
    (one,) = json.loads(done.stdout)["runs"]
    assert len(one["edges"]) == len(problem.model.edges) - 300 and one["kl_div"] > 0


def test_few_prompts_of_ones_own(tmp_path: Path) -> None:
    """Files that others may read, of all prompts, in batches as small as need be."""
    own = {"prompts": [{"clean": [0, i, 20], "corrupt": [0, 9, 20], "answers": [5], "wrong_answers": [6]}
                       for i in (3, 4)]}  # fmt: skip
    prompts, graph, ids = tmp_path / "own.json", tmp_path / "g.onnx", tmp_path / "ids.json"
    prompts.write_text(json.dumps(own))
    few = call("export", "ioi", graph, "--prompts", prompts)
    assert few.exit_code == 1 and "--batch-size" in few.stderr
    done = call("export", "ioi", graph, "--prompts", prompts, "--batch-size", 1, "--ids", ids)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(ids.read_text())["prompts"]
    assert sorted(row["clean"] for row in rows) == [[0, 3, 20], [0, 4, 20]]
    modes = {file.suffix: file.stat().st_mode & 0o777 for file in tmp_path.glob("g*")}
    assert modes == {".onnx": 0o644, ".safetensors": 0o644}


def test_what_says_nothing_of_a_circuit_is_refused(tmp_path: Path) -> None:
    wanted = ["--ids", tmp_path / "i", "--low", "int8", "--check"]
    failed = call("export", "ioi", tmp_path / "c.json", *wanted, "--result", tmp_path)
    assert failed.exit_code == 1
    assert all(flag in failed.stderr for flag in ("--low", "--check", "--ids", "--result"))


MODEL = small_model()


X = "tracr-xproportion"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["no-such-problem"], "no-such-problem"),
        ([X, "--graph", "wide"], "dense"),
        ([X, "--low", "int3"], "int3"),
        ([X, "--head", "none"], "LAYER.HEAD"),
        ([X, "--head", "²"], "LAYER.HEAD"),
        ([X, "--head", "9.9"], "no head 9"),
        ([X, "--start-layer", "99"], "start_layer"),
        ([X, "--positions", "first"], "positions"),
        ([X, "--policy", "hybrid"], "hybrid"),
        ([X, "--prompts", "missing.json"], "prompts"),
    ],
)
def test_export_fails_in_one_line(arguments: list[str], word: str, tmp_path: Path) -> None:
    problem, *options = arguments
    with untouched(tmp_path):
        fails(word, "export", problem, tmp_path / "g.onnx", *options)


def test_export_keeps_what_is_there(tmp_path: Path, monkeypatch: Any) -> None:
    path = export_onnx(MODEL, tmp_path / "g.onnx")
    (tmp_path / "folder").mkdir()
    with untouched(tmp_path):
        fails("--force", "export", X, path)
        fails("is a folder", "export", X, tmp_path / "folder")
        monkeypatch.setattr(check, "check_shapes", Interrupted(None, 1, ExportError("shapes")))
        fails("shapes", "export", X, path, "--force", "--check")
        monkeypatch.setattr(check, "check_names", Interrupted(None, 1, ValueError("a\nb")))
        assert command("export", X, path, "--force", "--check").exit_code == 2
        with pytest.raises(ValueError, match="a\nb"):
            raise command("export", X, path, "--force", "--check", "--debug").exception or KeyError
