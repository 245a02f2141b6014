"""``pahq export``: graphs that are checked, circuits as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

import pahq_plugin as pahq
from pahq_exporters.commands import export, run
from pahq_exporters.interchange import read_graph_json

app = typer.Typer()
app.command("export")(export)
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


def test_a_checked_export(tmp_path: Path) -> None:
    done = call("export", "tracr-xproportion", tmp_path / "g.onnx", "--check", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == (tmp_path / "g.onnx").stat().st_size
    assert [line.split(":")[0] for line in found["check"][:3]] == ["names", "shapes", "meaning"]
    assert "mode memory" in found["check"][-1]
