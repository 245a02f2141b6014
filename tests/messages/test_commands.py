"""Messages of commands about their own options."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pahq_exporters import commands
from pahq_exporters.run import main, parse_head, run
from pahq_plugin.cli import app as cli
from pahq_plugin.cli.early import check_folder, check_problem
from pahq_plugin.errors import ConfigError, ProblemError, PromptError
from tests.helpers.records import random_record, saved
from tests.helpers.refused import refused

COMMANDS: list[tuple[list[str], str]] = [
    (["discover", "ioi", "--batches", "-1"], "--batches=-1 must be 0 (all batches) or a number above 0"),
    (["discover", "ioi", "--guard", "x"], "--guard 'x' must be auto or a number, for example 0.3"),
    (["show", "RESULT", "--card", "--json"], "--json prints the result; leave out --card"),
    (["show", "RESULT", "--license", "mit"], "--license and --base-model belong to a card; add --card"),
    (["export", "ioi", "g.onnx", "--head", "x"], "--head 'x' must be auto, none or LAYER.HEAD, for "),
    (["export", "ioi", "g.onnx", "--head", "none"], "--head 'none' must be LAYER.HEAD, for example 2.7"),
    (
        ["export", "ioi", "g.onnx", "--result", "RESULT"],
        "g.onnx: with --result a circuit is written as JSON; name a .json file",
    ),
    (
        ["export", "ioi", "g.json"],
        "g.json: a .json file holds a circuit; pass --result FOLDER, or name a",
    ),
    (["export", "ioi", "g.txt"], "g.txt: the name of a graph must end in .onnx"),
    (["import", "ioi", "none.json"], "no file at none.json; expected a JSON graph"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[message for _, message in COMMANDS])
def test_options_of_commands(arguments: list[str], message: str, tmp_path: Path) -> None:
    folder = saved(random_record(3), tmp_path / "result")
    given = [str(folder) if argument == "RESULT" else argument for argument in arguments]
    plugged = typer.Typer()
    for name in ("discover", "show"):
        plugged.command(name)(getattr(cli, name))
    plugged.command("export")(commands.export)
    plugged.command("import")(commands.import_graph)
    found = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(plugged, given)
    assert found.exit_code == 1 and f"error: {message}" in found.stderr, found.output + found.stderr


def test_what_is_refused_early(tmp_path: Path) -> None:
    with refused(ProblemError, "no problem 'x'; the known ones are "):
        check_problem("x")
    file = tmp_path / "p.json"
    with refused(PromptError, f"cannot read the prompt file {file}: No such file or directory"):
        check_problem("ioi", file)
    file.touch()
    with refused(ConfigError, f"--out {file} is a file; name a folder"):
        check_folder(file, force=False)
    (tmp_path / "result.json").touch()
    with refused(ConfigError, f"--out {tmp_path} holds a result already; pass --force to replace it"):
        check_folder(tmp_path, force=False)


def test_options_of_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused(ConfigError, "give one of --edges, --all and --result"):
        run(tmp_path / "g.onnx", tmp_path / "p.json", ["A0.1->MLP 1"], all_edges=True)
    with refused(
        ConfigError, 'name edges with --edges, such as "A0.1->MLP 2", or use --all or --result'
    ):
        run(tmp_path / "g.onnx", tmp_path / "p.json")
    with refused(ConfigError, "--head '1' must be auto, none or LAYER.HEAD, for example 2.7"):
        parse_head("1")
    assert main(["g.onnx", "--prompts", "p.json", "--limit", "0"]) == 1
    assert "--limit 0 must be above 0" in capsys.readouterr().err
    with refused(ConfigError, f"{tmp_path} is a folder; name a file, such as {tmp_path}"):
        commands._check_ending(tmp_path, is_circuit=False)
