"""Checks that run before PyTorch and the host are imported, which can take ten seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pahq_plugin.choices import PROBLEMS
from pahq_plugin.errors import ConfigError, ProblemError, PromptError
from pahq_plugin.results.files import CHECKPOINT, RESULT_FILE


def check_problem(name: str, prompts: Path | None = None) -> None:
    """Refuse an unknown problem or a missing prompt file.

    Tracr problems take no prompts; `load_problem` refuses those.
    """
    if name not in PROBLEMS:
        raise ProblemError(f"no problem {name!r}; the known ones are {', '.join(PROBLEMS)}")
    if prompts is not None and not name.startswith("tracr-") and not prompts.exists():
        raise PromptError(f"cannot read the prompt file {prompts}: No such file or directory")


def check_folder(out: Path | None, force: bool) -> None:
    """Refuse an ``--out`` folder that cannot get a result."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if (out / RESULT_FILE).exists() and not force:
        raise ConfigError(f"--out {out} holds a result already; pass --force to replace it")


def how_to_go_on(checkpoint: Path | None, out: Path | None) -> Callable[[], str]:
    """Return a function that says, after an interrupt, how to resume; empty without a checkpoint."""
    file = checkpoint or (None if out is None else out / CHECKPOINT)

    def line() -> str:
        if file is None or not file.is_file():
            return ""
        return f"; run the same command again to continue from {file}"

    return line
