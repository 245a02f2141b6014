"""What commands refuse at once: importing PyTorch and the host takes ten seconds on a slow machine.

The defaults that a command shares with the function behind it stand here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pahq_plugin.choices import PROBLEMS
from pahq_plugin.errors import ConfigError, ProblemError, PromptError
from pahq_plugin.results.files import CHECKPOINT, RESULT_FILE


def check_problem(name: str, prompts: Path | None = None) -> None:
    """
    Raises:
        ProblemError: no such problem.
        PromptError: no such file of prompts. Tracr problems take none, which `load_problem` says.
    """
    if name not in PROBLEMS:
        raise ProblemError(f"no problem {name!r}; the known ones are {', '.join(PROBLEMS)}")
    if prompts is not None and not name.startswith("tracr-") and not prompts.exists():
        raise PromptError(f"cannot read the prompt file {prompts}: No such file or directory")


def check_folder(out: Path | None, force: bool) -> None:
    """
    Raises:
        ConfigError: the folder is a file, or holds a result already.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if (out / RESULT_FILE).exists() and not force:
        raise ConfigError(f"--out {out} holds a result already; pass --force to replace it")


def how_to_go_on(checkpoint: Path | None, out: Path | None) -> Callable[[], str]:
    """What to add to ``interrupted``, when the time comes: empty if there is no checkpoint then."""
    file = checkpoint or (None if out is None else out / CHECKPOINT)

    def line() -> str:
        if file is None or not file.is_file():
            return ""
        return f"; start the same command again to go on from {file}"

    return line
