"""``pahq export``, ``pahq run`` and the command of deployments: errors are one line and exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from pahq_exporters import OnnxPatcher, check, commands, export_onnx
from pahq_exporters.run import main, parse_head
from pahq_plugin.errors import ConfigError, ExportError, PahqError
from tests.helpers.refused import Interrupted, refused, untouched
from tests.helpers.small import small_model

MODEL = small_model()
EDGE = "A0.1->MLP 1"


def command(*arguments: object) -> Result:
    app = typer.Typer()
    app.command("export")(commands.export)
    app.command("run")(commands.run)
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


def fails(word: str, *arguments: object) -> None:
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and word in line and not result.stdout, line


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


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = export_onnx(MODEL, folder / "g.onnx")
    export_onnx(MODEL, folder / "late.onnx", start_layer=1)
    prompt = {"clean": [1, 2, 3], "corrupt": [4, 5, 6], "answers": [7], "wrong_answers": [8]}
    for name, change in {
        "p": {},
        "text": {"clean": "When"},
        "vocabulary": {"corrupt": [4, 5, 99]},
        "answers": {"answers": [40]},
        "large": {"answers": [10**40]},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps({"prompts": [prompt | change]}))
    return path


RUNS: list[tuple[list[str], str]] = [
    ([], "--edges"),
    (["--edges", EDGE, "--all"], "one of --edges, --all and --result"),
    (["--edges", "A9.9->MLP 1"], "A9.9"),
    (["--edges", EDGE, "--head", "5.0"], "no head 0 in layer 5"),
    (["--edges", EDGE, "--head", "1.²"], "LAYER.HEAD"),
    (["--edges", EDGE, "--mode", "fast"], "speed, memory"),
    (["--edges", EDGE, "--threads", "0"], "threads"),
    (["--edges", EDGE, "--provider", "npu"], "npu"),
    (["--edges", EDGE, "--prompts", "text.json"], "token ids"),
    (["--edges", EDGE, "--prompts", "vocabulary.json"], "id 99"),
    (["--edges", EDGE, "--prompts", "answers.json"], "[40]"),
    (["--edges", EDGE, "--prompts", "large.json"], "outside the vocabulary"),
    (["--edges", EDGE, "--prompts", "missing.json"], "cannot be read"),
    (["--edges", EDGE, "--graph", "late.onnx"], "block 1"),
    (["--edges", EDGE, "--graph", "p.json"], "not an ONNX model"),
    (["--edges", EDGE, "--graph", "missing.onnx"], "no file"),
]


@pytest.mark.parametrize(("arguments", "word"), RUNS)
@pytest.mark.parametrize("light", [False, True])
def test_run_fails_in_one_line(
    arguments: list[str], word: str, light: bool, graph: Path, capsys: Any
) -> None:
    """Both commands, that of a deployment without PyTorch, too."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    path = graph.parent / options.pop("--graph", "g.onnx")
    prompts = graph.parent / options.pop("--prompts", "p.json")
    rest = [word for pair in options.items() for word in pair]
    rest += ["--all"] if "--all" in arguments else []
    given = [str(path), "--prompts", str(prompts), *rest]
    if not light:
        fails(word, "run", *given)
        return
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and word in err and len(err.splitlines()) == 1 and not out
    with pytest.raises(PahqError):
        main([*given, "--debug"])


def test_a_limit_of_nothing_and_an_interrupt(graph: Path, capsys: Any, monkeypatch: Any) -> None:
    given = [str(graph), "--prompts", str(graph.parent / "p.json"), "--edges", EDGE]
    assert main([*given, "--limit", "0"]) == 1
    assert "limit" in capsys.readouterr().err
    assert main([*given, "--limit", "1"]) == 0
    monkeypatch.setattr(OnnxPatcher, "run", Interrupted(None, 1, KeyboardInterrupt()))
    capsys.readouterr()
    assert main(given) == 130 and capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("text", ["", "1", "²", "1.²", "-1.2", "1.2.3", " 1.2", "1." + "1" * 5000])
def test_a_head_is_two_numbers(text: str) -> None:
    assert parse_head("12.7") == (12, 7)
    with refused(ConfigError, "LAYER.HEAD"):
        parse_head(text)
