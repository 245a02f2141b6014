"""The command in a shell: its help and version, what it imports, and commands of other packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pahq_plugin import choices as known
from tests.helpers.commands import MAIN, assert_light, shell, succeeds
from tests.helpers.terminals import REPOSITORY


def test_threads_sleep_while_they_wait_unless_told_otherwise() -> None:
    told = "; import os, atexit; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY']))"
    for given in ("PASSIVE", "ACTIVE"):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        done = subprocess.run(
            [sys.executable, "-c", MAIN.replace("; main", f"{told}; main"), "--version"],
            env=environment | ({"OMP_WAIT_POLICY": given} if given == "ACTIVE" else {}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split()[-1] == given


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in known.WITH_JSON), ["schema", "run"]],
)
def test_what_needs_no_model_imports_nothing_heavy(arguments: list[str]) -> None:
    """What keeps ``pahq --help`` under a second."""
    assert_light(MAIN, *arguments)


def test_importing_the_package_imports_nothing_but_the_standard_library() -> None:
    code = """if True:
        import sys
        before = set(sys.modules)
        import pahq_plugin
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        assert new - set(sys.stdlib_module_names) == {"pahq_plugin"}, new
        assert {n for n in sys.modules if n.startswith("pahq_plugin")} == {"pahq_plugin"}
        """
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("mend = 1 / 0", "division by zero"),
        ("mend = 3", "is a int"),
        ("raise SystemExit(3)", "3"),
        ("", "no attribute 'mend'"),
    ],
)
def test_a_foreign_command_that_is_broken_does_not_break_the_others(
    code: str, reason: str, tmp_path: Path
) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pahq.commands]\nmend = broken_command:mend\n")
    (tmp_path / "broken_command.py").write_text(f"{code}\n")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY), str(REPOSITORY / "exporters")])
    done = shell("--version", PYTHONPATH=path)
    assert done.returncode == 0 and done.stdout.startswith("pahq-plugin ")
    assert done.stderr.startswith("warning: pahq.commands 'mend' ") and reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_version() -> None:
    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, f"pahq-plugin {version('pahq-plugin')}\n")


@pytest.mark.parametrize("width", ["40", "60"])
def test_help_fits_narrow_terminals(width: str) -> None:
    for arguments in (["--help"], ["doctor", "--help"]):
        lines = shell(*arguments, COLUMNS=width).stdout.splitlines()
        assert max(map(len, lines)) <= int(width)


COMMANDS = ["discover", "show", "doctor"]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    for flag in ("--help", "-h"):
        text = succeeds(name, flag)
        assert "Usage: " in text and "--json" in text and "--debug" in text
        assert name in succeeds(flag)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pahq_plugin", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0 and "discover" in done.stdout
