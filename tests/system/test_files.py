"""Files are written whole or not at all, and JSON is read strictly."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from pahq_plugin.system.files import installed_version, parse_json, read_json, write_text, written_whole


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "folder" / "a.txt"
    write_text(file, "old")
    write_text(file, "new – ü")
    assert file.read_text(encoding="utf-8") == "new – ü"
    assert list(file.parent.iterdir()) == [file] and file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_a_torn_write_leaves_the_old_content(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    file = tmp_path / "a.txt"
    write_text(file, "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_text(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), written_whole(file) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_strict_json_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, -2.5e3, null, true, "ü"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, -2500.0, None, True, "ü"]}


@pytest.mark.parametrize("text", ["-Infinity", "1e999", '{"a": {"b": 1, "b": 1}}', ""])
def test_what_is_not_strict_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'"\xff"')
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_versions_of_packages() -> None:
    assert installed_version("torch") == version("torch")
    assert installed_version("no-such-package") is None
