"""What commands print: tables, colours, warnings and errors, and their exit codes."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from pahq_plugin.cli.app import app
from pahq_plugin.cli.output import print_table
from pahq_plugin.errors import ConfigError
from pahq_plugin.system.warn import warn
from tests.helpers.commands import MAIN, command, shell
from tests.helpers.terminals import in_a_terminal

COLUMNS = ["method", "problems", "differs from FP32", "ROC AUC", "CPR, logit diff", "MiB"]
ROWS = [
    ["subnetwork-probing", "5", "0 of 38,856", "0.999", "0.88", "240"],
    ["pahq", "5", "0 of 38,856", "0.999", "0.88", "28"],
]


@pytest.mark.parametrize("width", [34, 40, 60, 80, 100, 200])
def test_words_are_whole_and_lines_fit(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("All methods", COLUMNS, ROWS)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    words = set(printed.replace(";", " ").split())
    assert {word for name in COLUMNS for word in name.split()} <= words
    assert {"subnetwork-probing", "5"} <= words
    assert ("A wider terminal shows: " in printed) == (width < 80)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("discover", "chess").exit_code == 1
    assert command("discover", "ioi", "--nonsense").exit_code == 2
    assert command("discover", "ioi", "--threshold", "much").exit_code == 2
    assert command("nonsense").exit_code == 2
    for error, code in ((KeyboardInterrupt(), 130), (MemoryError(), 1), (OSError("full"), 1),
                        (ZeroDivisionError("x"), 2)):  # fmt: skip
        monkeypatch.setattr("pahq_plugin.cli.doctor.examine", raiser(error))
        result = command("doctor")
        assert result.exit_code == code
        assert len(result.stderr.splitlines()) == 1 and result.stdout == ""


def raiser(error: BaseException) -> Any:
    def fail(*arguments: object) -> NoReturn:
        raise error

    return fail


def test_an_error_of_several_lines_is_printed_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_plugin.cli.doctor.examine", raiser(RuntimeError("one\n two\nthree")))
    result = command("doctor")
    assert result.exit_code == 2
    assert result.stderr == "error: unexpected RuntimeError: one two three; --debug shows where\n"


def test_debug_raises_the_error() -> None:
    result = command("discover", "ioi", "--threshold", "-1", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ConfigError)
    plain = command("discover", "ioi", "--threshold", "-1")
    assert plain.exit_code == 1 and isinstance(plain.exception, SystemExit)
    assert plain.stderr.splitlines() == [f"error: {result.exception}"]


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def coloured(text: str) -> bool:
    return bool(COLOUR.search(text))


MISSING = ["show", "no-such-folder"]


def test_files_and_pipes_get_no_colours() -> None:
    for arguments in (["--help"], MISSING, ["doctor"]):
        done = shell(*arguments)
        assert not coloured(done.stdout + done.stderr), arguments


def test_colour_can_be_forced() -> None:
    done = shell(*MISSING, FORCE_COLOR="1")
    assert coloured(done.stderr) and COLOUR.sub("", done.stderr) == shell(*MISSING).stderr
    assert coloured(shell("--help", FORCE_COLOR="1").stdout)


def test_json_is_never_coloured() -> None:
    assert not coloured(shell("doctor", "--json", FORCE_COLOR="1").stdout)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_no_color_is_set(no_color: str) -> None:
    for arguments in (MISSING, ["--help"]):
        seen = in_a_terminal("-c", MAIN, *arguments, NO_COLOR=no_color)
        hues = re.findall(r"\x1b\[[0-9;]*3[1-7]m", seen)
        assert bool(hues) == (not no_color), seen


def test_an_error_is_one_line_however_narrow_the_terminal() -> None:
    done = shell("show", "a-folder/" * 12, COLUMNS="40")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_commands_print_both_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)

    def examine() -> dict[str, object]:
        warn("on another engine")
        warn("on another engine")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logging.getLogger("pahq_plugin.engines.protocol").warning("fewer rows")
        logging.getLogger("pahq_plugin.engines.protocol").info("a detail")
        logging.getLogger("someone.else").warning("noise")
        return {}

    monkeypatch.setattr("pahq_plugin.cli.doctor.examine", examine)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0 and result.stdout == "{}\n"
    line = "warning: on another engine\n"
    assert result.stderr == line + line + "warning: fewer rows\n"
    assert [type(h) for h in logging.getLogger("pahq_plugin").handlers] == [logging.NullHandler]
