"""The commands refuse bad input in one line, and write nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import pahq_plugin as pahq
from pahq_plugin.cli.app import app
from pahq_plugin.errors import ResultError
from tests.helpers.broken import BROKEN_MODELS, DAMAGED
from tests.helpers.small import loader


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code != 0
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "unexpected" not in lines[0], lines[0]
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


def assert_refused(tmp_path: Path, arguments: list[str], *words: str) -> None:
    """``pahq discover`` prints one line and writes nothing, in tables as with ``--json``."""
    out = tmp_path / "out"
    for flags in ([], ["--json"]):
        assert_one_line(command("discover", *arguments, "--out", str(out), *flags), *words)
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["chess"], "'chess'"),
        (["ioi", "--threshold", "-0.5"], "threshold=-0.5"),
        (["ioi", "--method", "pahk"], "'pahk'"),
        (["ioi", "--metric", "kl"], "'kl'"),
        (["ioi", "--engine", "fast"], "'fast'"),
        (["ioi", "--ablation", "none"], "'none'"),
        (["ioi", "--low", "fp9"], "'fp9'"),
        (["ioi", "--mlp", "int4"], "mlp='int4'"),
        (["ioi", "--scale", "column"], "'column'"),
        (["ioi", "--policy", "all"], "'all'"),
        (["ioi", "--guard", "-1"], "guard=-1.0"),
        (["ioi", "--kernel", "fast"], "'fast'"),
        (["ioi", "--low", "fp8_e4m3", "--kernel", "native"], "fp8_e4m3"),
        (["ioi", "--batches", "99"], "batches=99"),
        (["ioi", "--seed", "-1"], "seed"),
        (["ioi", "--batch-size", "0"], "batch_size"),
        (["ioi", "--method", "eap", "--n-edges", "9999"], "n_edges=9999"),
        (["ioi", "--method", "eap", "--metric", "mse"], "'mse'"),
        (["ioi", "--method", "eap", "--steps", "5"], "--steps"),
        (["ioi", "--method", "eap-ig", "--steps", "0"], "steps=0"),
        (["ioi", "--method", "eap-ig", "--steps", "1", "--metric", "kl_div"], "more steps"),
        (["ioi", "--method", "acdc", "--low", "int8", "--guard", "1"], "--low, --guard"),
        (["ioi", "--method", "eap", "--threshold", "0.01"], "--threshold"),  # the default
        (["ioi", "--method", "Official Circuit"], "true_edges"),
        (["tracr-xproportion", "--model", "gpt2"], "model"),
        (["tracr-xproportion", "--method", "eap"], "answers"),
    ],
)  # fmt: skip
def test_the_command_refuses(arguments: list[str], word: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, arguments, word)


def test_the_command_refuses_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, word = BROKEN_MODELS["NaN"]

    def load(name: str, **arguments: object) -> Any:
        return pahq.Problem(name, make(), loader(), loader(), "kl_div", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("pahq_plugin.problems.load_problem", load)
    assert_refused(tmp_path, ["ioi"], word)


def test_the_command_refuses_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    pair = {"clean": [0, 2, 3], "corrupt": [0, 2, 4], "answers": [5], "wrong_answers": [6]}
    file.write_text(json.dumps({"prompts": [pair] * 5}))
    assert_refused(tmp_path, ["ioi", "--prompts", str(file)], "at least 16")


def test_the_command_refuses_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path, ["ioi", "--prompts", str(tmp_path / "none.json")], "none.json")


def test_the_command_refuses_a_file_as_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line(command("discover", "ioi", "--out", str(file)), str(file))
    assert file.read_text() == "mine"


def test_show_refuses_a_damaged_result(found: pahq.Discovery, tmp_path: Path) -> None:
    file = found.save(tmp_path) / "result.json"
    file.write_text(DAMAGED["truncated"](file.read_text()))
    assert_one_line(command("show", str(tmp_path)), "result.json")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"stats": 5}', '{"stats": {"seconds": 1}}'])
def test_show_refuses_a_damaged_run_record(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    (found.save(tmp_path) / "run.json").write_text(damage)
    assert_one_line(command("show", str(tmp_path)), "run.json")
    with pytest.raises(ResultError, match=r"run\.json"):
        pahq.Discovery.load(tmp_path, found.model)


def test_show_refuses_a_folder_without_a_result(tmp_path: Path) -> None:
    assert_one_line(command("show", str(tmp_path)), str(tmp_path))
    assert_one_line(command("show", str(tmp_path / "nowhere")), "nowhere")
