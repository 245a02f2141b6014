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
    ("arguments", "words"),
    [
        (["chess"], ("'chess'", "ioi, greater-than, induction")),
        (["ioi", "--threshold", "0"], ("threshold=0.0", "above 0")),
        (["ioi", "--threshold", "-0.5"], ("threshold=-0.5",)),
        (["ioi", "--threshold", "nan"], ("threshold=nan",)),
        (["ioi", "--threshold", "inf"], ("threshold=inf",)),
        (["ioi", "--method", "pahk"], ("'pahk'", "pahq-paper")),
        (["ioi", "--metric", "kl"], ("'kl'", "kl_div, mse, logit_diff")),
        (["ioi", "--engine", "fast"], ("'fast'", "auto, incremental, host")),
        (["ioi", "--ablation", "none"], ("'none'", "resample")),
        (["ioi", "--low", "fp9"], ("'fp9'", "fp8_e4m3")),
        (["ioi", "--mlp", "int4"], ("mlp='int4'", "weights only")),
        (["ioi", "--scale", "column"], ("'column'", "row")),
        (["ioi", "--policy", "all"], ("'all'", "investigated_head")),
        (["ioi", "--guard", "wide"], ("'wide'", "auto")),
        (["ioi", "--guard", "-1"], ("guard=-1.0",)),
        (["ioi", "--kernel", "fast"], ("unknown kernel 'fast'", "auto, eager, native")),
        (["ioi", "--low", "fp8_e4m3", "--kernel", "native"], ("fp8_e4m3 has no kernel", "auto")),
        (["ioi", "--batches", "-1"], ("batches=-1",)),
        (["ioi", "--batches", "99"], ("batches=99", "holds 4")),
        (["ioi", "--seed", "-1"], ("seed",)),
        (["ioi", "--batch-size", "0"], ("batch_size", "above 0, not 0")),
        (["ioi", "--method", "eap", "--n-edges", "-3"], ("n_edges=-3", "1519")),
        (["ioi", "--method", "eap", "--n-edges", "9999"], ("n_edges=9999", "1519")),
        (["ioi", "--method", "eap", "--threshold", "0.1"], ("cannot use --threshold; it uses",)),
        (["ioi", "--method", "eap", "--metric", "mse"], ("cannot use --metric",)),
        (["ioi", "--method", "acdc", "--n-edges", "3"], ("cannot use --n-edges",)),
        (["ioi", "--method", "acdc", "--low", "int8", "--guard", "1"], ("cannot use --low, --guard",)),
        (["ioi", "--method", "eap", "--threshold", "0.01"], ("cannot use --threshold",)),  # the default
        (["ioi", "--method", "Official Circuit"], ("true_edges",)),
        (["tracr-xproportion", "--metric", "kl_div"], ("kl_div", "mse")),
        (["tracr-xproportion", "--model", "gpt2"], ("model",)),
        (["tracr-xproportion", "--method", "eap"], ("answers",)),
    ],
)  # fmt: skip
def test_the_command_refuses(arguments: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(tmp_path, arguments, *words)


@pytest.mark.parametrize("broken", BROKEN_MODELS)
def test_the_command_refuses_a_model(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = BROKEN_MODELS[broken]

    def load(name: str, **arguments: object) -> Any:
        return pahq.Problem(name, make(), loader(), loader(), "kl_div", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("pahq_plugin.problems.load_problem", load)
    assert_refused(tmp_path, ["ioi"], *words)


def prompt_file(path: Path, prompts: list[dict[str, Any]]) -> list[str]:
    path.write_text(json.dumps({"prompts": prompts}))
    return ["ioi", "--prompts", str(path)]


def pair(clean: list[int], corrupt: list[int]) -> dict[str, Any]:
    return {"clean": clean, "corrupt": corrupt, "answers": [5], "wrong_answers": [6]}


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([pair([1, 2, 3], [1, 2, 3, 4])] * 24, ("prompt 0", "3", "4")),
        ([pair([1, 2, 3], [1, 2, 4])] * 23 + [pair([1, 2], [1, 3])], ("23", "2")),
        ([pair([0, 2, 3], [0, 2, 4])] * 5, ("batch of 8: 5", "at least 16")),
        ([], ("no prompts",)),
        ([pair([1, 2, 99999], [1, 2, 4])] * 24, ("99999",)),
        ([{"clean": [1, 2]}] * 24, ("prompt 0", "corrupt")),
    ],
)
def test_the_command_refuses_prompts(
    prompts: list[dict[str, Any]], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(tmp_path, prompt_file(tmp_path / "prompts.json", prompts), *words)


def test_the_command_refuses_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path, ["ioi", "--prompts", str(tmp_path / "none.json")], "none.json")


def test_the_command_refuses_a_file_as_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line(command("discover", "ioi", "--out", str(file)), "is a file", "folder")
    assert file.read_text() == "mine"


SHOWN_WITHOUT_A_MODEL = {"edge is no edge", "unknown position"}
"""Damage that only the model can tell."""


@pytest.mark.parametrize("damage", sorted(DAMAGED.keys() - SHOWN_WITHOUT_A_MODEL))
def test_show_refuses_a_damaged_result(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    file = found.save(tmp_path) / "result.json"
    file.write_text(DAMAGED[damage](file.read_text()))
    assert_one_line(command("show", str(tmp_path)), "result.json")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"stats": 5}', '{"stats": {"seconds": 1}}'])
def test_show_refuses_a_damaged_run_record(found: pahq.Discovery, damage: str, tmp_path: Path) -> None:
    (found.save(tmp_path) / "run.json").write_text(damage)
    assert_one_line(command("show", str(tmp_path)), "run.json")
    with pytest.raises(ResultError, match=r"run\.json"):
        pahq.Discovery.load(tmp_path, found.model)


def test_show_refuses_a_folder_without_a_result(tmp_path: Path) -> None:
    assert_one_line(command("show", str(tmp_path)), "no result", "result.json")
    assert_one_line(command("show", str(tmp_path / "nowhere")), "no result", "nowhere")
