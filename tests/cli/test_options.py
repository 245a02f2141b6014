"""Options whose values the shell completes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.commands import MAIN, assert_light, shell


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
        (
            "pahq compare ioi --methods acdc,ea",
            ["acdc,eactp", "acdc,eap", "acdc,eap-ig", "acdc,eap-ig-activations"],
        ),
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


def test_completion_imports_nothing_heavy() -> None:
    words = {"_PAHQ_COMPLETE": "complete_bash", "COMP_WORDS": "pahq discover i", "COMP_CWORD": "2"}
    assert_light(MAIN, **words)
