"""What commands print with ``--json``, held against the schemas that ``pahq schema`` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from pahq_exporters.commands import export, import_graph, run
from pahq_plugin.choices import WITH_JSON
from pahq_plugin.cli.app import app

everything = typer.Typer()
everything.registered_commands = list(app.registered_commands)
everything.command("export")(export)
everything.command("import")(import_graph)
everything.command("run")(run)


def call(*arguments: object) -> str:
    result = CliRunner().invoke(everything, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def validator(command: str) -> Draft202012Validator:
    schema = json.loads(call("schema", command))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def valid(command: str, *arguments: object) -> Any:
    """The document, which fits the command's schema, and not once a field is added or taken away."""
    document = json.loads(call(command, *arguments, "--json"))
    check = validator(command)
    check.validate(document)
    assert not check.is_valid(document | {"novelty": 1})
    for name in document:
        if name != "check":
            assert not check.is_valid({k: v for k, v in document.items() if k != name}), name
    return document


@pytest.mark.parametrize("command", WITH_JSON)
def test_every_command_with_json_has_a_schema(command: str) -> None:
    schema = validator(command).schema
    assert f"pahq {command} --json" in schema["title"] and schema["description"]


def test_every_command_with_a_json_option_is_listed() -> None:
    with_json = [
        command.name or command.callback.__name__  # type: ignore[union-attr]
        for command in everything.registered_commands
        if "as_json" in command.callback.__annotations__  # type: ignore[union-attr]
    ]
    assert sorted(with_json) == sorted(WITH_JSON)


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(everything, ["schema", "bench"])
    names = "discover, show, compare, store, doctor, export, import, run"
    assert result.exit_code == 1
    assert "'bench'" in result.stderr and names in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--guard", "inf"],
        ["--method", "acdc", "--engine", "host"],
        ["--policy", "hybrid", "--low", "int8", "--weights", "int4"],
        ["--method", "eap", "--n-edges", "9"],
        ["--method", "eactp", "--n-edges", "9"],
        ["--method", "eactp", "--low", "int8", "--mlp", "int8", "--refine", "3"],
        ["--method", "Random"],
    ],
)
def test_discover_and_show(options: list[str], tmp_path: Path) -> None:
    problem = "ioi" if {"hybrid", "eap"} & set(options) else "tracr-xproportion"
    document = valid("discover", problem, *options, "--out", tmp_path / "found")
    assert valid("show", tmp_path / "found") == document


def test_show_without_costs(tmp_path: Path) -> None:
    call("discover", "tracr-xproportion", "--method", "acdc", "--out", tmp_path)
    (tmp_path / "run.json").unlink()
    assert valid("show", tmp_path)["stats"] == {}


def test_store(tmp_path: Path) -> None:
    document = valid("store", "bundled", tmp_path / "model")
    found = valid(
        "discover", "ioi", "--model", tmp_path / "model", "--max-memory", "70MB", "--method", "acdc"
    )
    assert found["stats"]["memory"]["weights"] == document["bytes"]


def test_doctor() -> None:
    document = valid("doctor")
    ready = {entry["use"].split(":")[0]: entry["ready"] for entry in document["uses"]}
    assert ready["circuits"] is True and ready["models of the hub"] is None


@pytest.mark.full
def test_compare(tmp_path: Path) -> None:
    options = ["--methods", "acdc,random", "--thresholds", "0.03", "--test-batches", "1"]
    document = valid("compare", "tracr-xproportion", *options, "--out", tmp_path / "out")
    assert [row["method"] for row in document["summary"]] == ["acdc", "random"]


def test_export_and_run(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    valid("export", "ioi", file)
    pairs = [{"clean": [0, 5, 6], "corrupt": [0, 5, 7]} for _ in range(2)]
    answered = [pair | {"answers": [5], "wrong_answers": [6]} for pair in pairs]
    for name, prompts in (("plain", pairs), ("answered", answered)):
        (tmp_path / name).write_text(json.dumps({"prompts": prompts}))
        document = valid("run", file, "--prompts", tmp_path / name, "--edges", "A0.7->MLP 0")
        assert ("logit_diff" in document["clean"]) == (name == "answered")
    call("discover", "ioi", "--method", "eap", "--n-edges", "5", "--out", tmp_path / "found")
    valid("export", "ioi", tmp_path / "circuit.json", "--result", tmp_path / "found")


def test_import_and_show(tmp_path: Path) -> None:
    call("discover", "ioi", "--method", "eap", "--n-edges", "5", "--out", tmp_path / "found")
    call("export", "ioi", tmp_path / "circuit.json", "--result", tmp_path / "found")
    document = valid("import", "ioi", tmp_path / "circuit.json", "--out", tmp_path / "back")
    assert valid("show", tmp_path / "back") == document
    assert " s, peak memory" not in call("show", tmp_path / "back")  # nothing was measured
