"""``pahq show``: what it writes, opens and refuses. The table is tested in `test_cli`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pahq_plugin.cli.app import app
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


def test_folders_of_one_name_are_told_apart_by_their_paths(ioi: Path, tmp_path: Path) -> None:
    other = saved(random_record(40), tmp_path / "again" / "ioi")
    assert show(ioi, "--html", tmp_path / "page.html", "--compare", other).exit_code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f'"name":"{ioi}"' in text and f'"name":"{other}"' in text


def test_equal_names_and_edges_count_as_one_model(tmp_path: Path) -> None:
    edge = decision("a->b", 1.0)
    one = saved(record_of([edge], digest="1"), tmp_path / "one")
    two = saved(record_of([edge], digest="2"), tmp_path / "two")
    assert show(one, "--html", tmp_path / "page.html", "--compare", two).exit_code == 0


def test_results_of_different_models_are_refused(ioi: Path, tmp_path: Path) -> None:
    words = "different models, random with 1,519 edges and b with 1"
    record = record_of([decision("a->b", 1.0)], name="b", digest="other")
    other = saved(record, tmp_path / "other")
    refused(words, ioi, "--html", tmp_path / "page.html", "--compare", other)
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
    refused(f"{file} exists already; pass --force", ioi, option, file)
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
    refused("no result at", one, "--compare", tmp_path / "nothing")
    other = record_of([decision("a->b", 1.0)])
    other["model"] |= {"name": "another", "digest": "0", "edges": 1}
    refused("of different models", one, "--compare", saved(other, tmp_path / "other"))


def test_contradictions_are_refused(ioi: Path, tmp_path: Path) -> None:
    refused("--dot writes one circuit; leave out", ioi, "--compare", ioi, "--dot", tmp_path / "x")
    refused("--json prints one result; leave out --compare", ioi, "--compare", ioi, "--json")
    refused("leave out --html", ioi, "--json", "--html", tmp_path / "page.html")
    refused("prints the graph alone", ioi, "--dot", "-", "--html", tmp_path / "page.html")
    refused("is a folder; name a file", ioi, "--html", tmp_path, "--force")
    both = tmp_path / "both"
    refused(f"--html and --dot are both {both}; name two files", ioi, "--html", both, "--dot", both)
    assert not both.exists()
    refused("no result at", tmp_path / "nothing", "--html", tmp_path / "page.html")
    refused("no result at", ioi, "--html", tmp_path / "page.html", "--compare", tmp_path / "nothing")


def test_a_circle_is_refused(tmp_path: Path) -> None:
    record = record_of([decision("a->b", 1.0), decision("b->a", 1.0)])
    refused("form a cycle", saved(record, tmp_path / "r"), "--html", tmp_path / "page.html")


def test_halves_of_surrogate_pairs_do_not_stop_it(tmp_path: Path) -> None:
    record = record_of([decision("a\ud800->b", 1.0)], name="m\udfff")
    folder = saved(record, tmp_path / "r")
    assert show(folder, "--html", tmp_path / "page.html", "--dot", tmp_path / "c.dot").exit_code == 0
    assert "m?" in (tmp_path / "page.html").read_text(encoding="utf-8")
