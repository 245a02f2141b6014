"""The command in a shell: completion, version, colours, and what it imports on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pahq_plugin as pahq
from pahq_plugin import choices as known
from pahq_plugin.choices import ENGINES
from pahq_plugin.compare.baselines import BASELINES
from pahq_plugin.compare.plan import PROFILES
from pahq_plugin.engines.protocol import engine_names
from pahq_plugin.host import AblationType
from pahq_plugin.metrics import METRICS
from pahq_plugin.precision.formats import FORMATS
from pahq_plugin.problems import problem_names
from tests.helpers.terminals import REPOSITORY, in_a_terminal

HEAVY = ("torch", "numpy", "pandas", "transformers", "transformer_lens", "auto_circuit", "matplotlib")
MAIN = "import sys; from pahq_plugin.cli.app import main; sys.argv[0] = 'pahq'; main()"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``pahq`` in a process of its own, without a terminal."""
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=REPOSITORY,
        env=clean | {"TERM": "xterm"} | environment,
        capture_output=True,
        text=True,
    )


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


# Completion ----------------------------------------------------------------------------------------


def test_names_are_those_that_commands_accept() -> None:
    assert list(known.PROBLEMS) == list(problem_names())
    one_word = {name for name in pahq.methods() if " " not in name}
    assert set(known.METHODS) == one_word
    assert set(known.COMPARED) == {*BASELINES, "all"}
    assert set(known.METRICS) == set(METRICS)
    assert set(known.ABLATIONS) == {kind.name.lower() for kind in AblationType}
    assert {*known.ENGINES, "onnx"} == {*ENGINES, *engine_names()}
    assert set(known.FORMATS) == set(FORMATS) - {"int4"}  # of weights alone
    assert set(known.PROFILES) == set(PROFILES)
    for scale in known.SCALES:
        pahq.PrecisionConfig(low="fp8_e4m3", scale=scale)  # type: ignore[arg-type]
    for kernel in known.KERNELS:
        pahq.PrecisionConfig(kernel=kernel)  # type: ignore[arg-type]


def complete(words: str) -> list[str]:
    at = len(words.split(" ")) - 1
    done = shell(_PAHQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(at))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pahq d", ["discover", "doctor"]),
        ("pahq ex", ["export"]),
        ("pahq discover tracr", ["tracr-reverse", "tracr-xproportion"]),
        ("pahq discover ioi --method pa", ["pahq", "pahq-paper"]),
        ("pahq discover ioi --low fp8", ["fp8_e4m3", "fp8_e5m2"]),
        ("pahq compare ioi gr", ["greater-than"]),
        ("pahq compare ioi --methods acdc,ea", ["acdc,eap", "acdc,eap-ig"]),
        ("pahq export gr", ["greater-than"]),
        ("pahq schema c", ["compare"]),
    ],
)
def test_the_shell_completes(words: str, expected: list[str]) -> None:
    assert sorted(complete(words)) == expected


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(name: str, tmp_path: Path) -> None:
    # Without this typer looks for a shell among the processes above this one, where tests have none.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = shell("--install-completion", name, HOME=str(tmp_path), **named)
    assert done.returncode == 0 and "completion installed" in done.stdout, done.stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "PAHQ_COMPLETE" in p.read_text()]


# Imports -------------------------------------------------------------------------------------------


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


def test_completion_imports_nothing_heavy() -> None:
    words = {"_PAHQ_COMPLETE": "complete_bash", "COMP_WORDS": "pahq discover i", "COMP_CWORD": "2"}
    assert_light(MAIN, **words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["discover", "ioii"],
        ["discover", "ioi", "--prompts", "none.json"],
        ["export", "ioii", "g.onnx"],
        ["export", "ioi", "g.txt"],
        ["import", "ioi", "none.json"],
        ["show", "none"],
    ],
)
def test_plain_mistakes_are_refused_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    assert_light(MAIN, *arguments, code_of_exit=1)


def assert_light(code: str, *arguments: str, code_of_exit: int = 0, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code_of_exit, done.stderr[-500:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pahq_plugin.cli.app" in imported and not imported & set(HEAVY)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("mend = 1 / 0", "cannot be loaded: division by zero"),
        ("mend = 3", "is a int, not a function"),
        ("raise SystemExit(3)", "cannot be loaded: 3"),
        ("", "cannot be loaded: module 'broken_command' has no attribute 'mend'"),
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
    assert done.stderr == (f"warning: pahq.commands 'mend' (broken_command:mend) {reason}\n")


# Version and colours -------------------------------------------------------------------------------


def test_the_version() -> None:
    from importlib.metadata import version

    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, f"pahq-plugin {version('pahq-plugin')}\n")


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


@pytest.mark.parametrize("width", ["40", "60"])
def test_help_fits_narrow_terminals(width: str) -> None:
    for arguments in (["--help"], ["doctor", "--help"]):
        lines = shell(*arguments, COLUMNS=width).stdout.splitlines()
        assert max(map(len, lines)) <= int(width)
