"""``pahq show``: what it prints, writes, opens and refuses."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pahq_plugin.cli.app import app
from tests.helpers.commands import MAIN, assert_light, strict_json, succeeds
from tests.helpers.records import decision, random_record, record_of, saved


@pytest.fixture
def ioi(tmp_path: Path) -> Path:
    return saved(random_record(30), tmp_path / "ioi")


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, arguments)])


def refused(words: str, *arguments: str | Path) -> None:
    result = show(*arguments)
    assert result.exit_code == 1 and words in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_html_writes_a_page(ioi: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "page.html"
    result = show(ioi, "--html", file)
    assert result.exit_code == 0 and result.stdout == f"wrote {file}\n"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "<title>Circuit of random</title>" in text
    assert '"name":"ioi"' in text and '"compare":false' in text


def test_dot_goes_to_standard_output_alone(ioi: Path, tmp_path: Path) -> None:
    result = show(ioi, "--dot", "-")
    assert result.exit_code == 0
    assert result.stdout.startswith("digraph circuit {") and result.stdout.endswith("}\n")
    file = tmp_path / "circuit.dot"
    assert show(ioi, "--dot", file, "--html", tmp_path / "page.html").exit_code == 0
    assert file.read_text(encoding="utf-8") == result.stdout


def test_compare_draws_both(ioi: Path, tmp_path: Path) -> None:
    other = saved(random_record(40, seed=1), tmp_path / "runs" / "induction")
    assert show(ioi, "--html", tmp_path / "page.html", "--compare", other).exit_code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '"name":"ioi"' in text and '"name":"induction"' in text and '"compare":true' in text


def test_results_of_different_models_are_refused(ioi: Path, tmp_path: Path) -> None:
    record = record_of([decision("a->b", 1.0)], name="b", digest="other")
    other = saved(record, tmp_path / "other")
    refused("random", ioi, "--html", tmp_path / "page.html", "--compare", other)
    refused("random", ioi, "--compare", other)
    assert not (tmp_path / "page.html").exists()


def test_open_opens_a_temporary_page(ioi: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: not opened.append(address))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = show(ioi, "--open")
    assert result.exit_code == 0, result.output
    file = Path(result.stdout.removeprefix("wrote ").strip())
    assert opened == [file.as_uri()] and file.is_file() and file.is_relative_to(tmp_path)


def test_open_opens_the_named_page_and_says_so_without_a_browser(
    ioi: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = show(ioi, "--open", "--html", tmp_path / "page.html")
    assert result.exit_code == 0 and f"no browser was found; open {tmp_path}" in result.stdout


@pytest.mark.parametrize("option", ["--html", "--dot"])
def test_a_file_is_replaced_by_force_only(ioi: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "there"
    file.write_text("old")
    refused(str(file), ioi, option, file)
    assert file.read_text() == "old"
    assert show(ioi, option, file, "--force").exit_code == 0 and file.read_text() != "old"


def test_compare_without_a_picture_prints_what_differs(tmp_path: Path) -> None:
    first = record_of(
        [decision("a->b", 1.0), decision("b->c", 0.5), decision("a->c", 0.001, kept=False)]
    )
    second = record_of(
        [decision("a->b", 1.0), decision("b->c", 0.001, kept=False), decision("a->c", 2.0)]
    )
    one, two = saved(first, tmp_path / "one"), saved(second, tmp_path / "two")
    shown = show(one, "--compare", two)
    assert shown.exit_code == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.stdout.splitlines()]
    assert (
        lines[0].startswith("1 edges in both, 1 only in one, 1 only in two")
        and "Only in two (1)" in lines
    )
    assert "b->c 0.5 0.001" in lines and "a->c 0.001 2" in lines
    assert "all effects are equal" in " ".join(show(one, "--compare", one).stdout.split())
    assert "Only in" not in show(one, "--compare", two, "--top", "0").stdout
    assert "1 only in two" in " ".join(show(one, "--card", "--compare", two).stdout.split())


def test_contradictions_are_refused(ioi: Path, tmp_path: Path) -> None:
    refused("--dot", ioi, "--compare", ioi, "--dot", tmp_path / "x")
    refused("--json", ioi, "--compare", ioi, "--json")
    refused("--html", ioi, "--json", "--html", tmp_path / "page.html")
    refused("--dot", ioi, "--dot", "-", "--html", tmp_path / "page.html")
    refused("folder", ioi, "--html", tmp_path, "--force")
    both = tmp_path / "both"
    refused(str(both), ioi, "--html", both, "--dot", both)
    assert not both.exists()
    refused("nothing", tmp_path / "nothing", "--html", tmp_path / "page.html")
    refused("nothing", ioi, "--html", tmp_path / "page.html", "--compare", tmp_path / "nothing")


def test_show_prints_what_discover_printed(xproportion: tuple[Path, str]) -> None:
    folder, printed = xproportion
    text = succeeds("show", folder)
    assert text and printed.startswith(text)
    assert succeeds("show", folder / "result.json") == text
    assert sum("█" in line for line in succeeds("show", folder, "--top", "2").splitlines()) == 2


def test_show_as_json_is_the_file(xproportion: tuple[Path, str]) -> None:
    folder, _ = xproportion
    record = strict_json(succeeds("show", folder, "--json"))
    stats = record.pop("stats")
    assert record == json.loads((folder / "result.json").read_text())
    assert stats == json.loads((folder / "run.json").read_text())["stats"]


def test_show_imports_nothing_heavy(xproportion: tuple[Path, str]) -> None:
    folder, _ = xproportion
    assert "edges kept by pahq" in assert_light(MAIN, "show", str(folder))
    assert json.loads(assert_light(MAIN, "show", str(folder), "--json"))["decisions"]
