"""Read token ids from prompt files in the host's JSON format, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ConfigError, PromptError, one_line
from pahq_plugin.system.files import read_json


@dataclass(frozen=True)
class PromptFile:
    """Token ids of clean and corrupt prompts, ``[batch, pos]``, and of right and wrong answers,
    ``[batch, answer]``, which may be empty."""

    clean: list[list[int]]
    corrupt: list[list[int]]
    answers: list[list[int]]
    wrong_answers: list[list[int]]


def read_prompts(path: Path, limit: int | None = None) -> PromptFile:
    """Read the first ``limit`` prompts of a file; a `PromptError` says what is wrong with it."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"limit={limit!r} must be an integer above 0")
    try:
        prompts = read_json(path)["prompts"][:limit]
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PromptError(f'{path} must hold {{"prompts": [...]}} in JSON ({one_line(error)})') from None
    if not isinstance(prompts, list) or not prompts:
        raise PromptError(f"{path} holds no prompts")
    columns = (
        [_ids(prompt, key, i, path) for i, prompt in enumerate(prompts)]
        for key in ("clean", "corrupt", "answers", "wrong_answers")
    )
    read = PromptFile(*columns)
    lengths = sorted({len(ids) for ids in [*read.clean, *read.corrupt]})
    if len(lengths) > 1:
        raise PromptError(f"{path}: prompts have {lengths} tokens; all must have the same length")
    return read


def _ids(prompt: Any, key: str, index: int, path: Path) -> list[int]:
    where = f"{path}: prompts[{index}][{key!r}]"
    if not isinstance(prompt, dict):
        raise PromptError(f"{path}: prompts[{index}] must be an object with clean and corrupt")
    ids = prompt.get(key, [] if "answers" in key else None)
    if isinstance(ids, str) or (isinstance(ids, list) and any(isinstance(i, str) for i in ids)):
        raise PromptError(f"{where} is text; this needs token ids, since no tokeniser is loaded here")
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise PromptError(f"{where} must be a list of token ids")
    return ids
