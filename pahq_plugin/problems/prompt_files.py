"""Read and check prompts in the host's JSON format, and turn them into token ids.

Bundled prompts, templates and users' files all pass through ``as_token_ids``, so they share its checks
and messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pahq_plugin.errors import PromptError, one_line
from pahq_plugin.system.files import read_json
from pahq_plugin.system.warn import warn

KEYS = ("clean", "corrupt", "answers", "wrong_answers")


@dataclass(frozen=True)
class Encoder:
    """How a model's text becomes token ids.

    Attributes:
        encode: maps text to token ids ``[pos]``, without special tokens.
        bos: token id prepended to every text prompt; None for none.
        d_vocab: size of the model's vocabulary.
    """

    encode: Callable[[str], list[int]]
    bos: int | None
    d_vocab: int


def read_prompts(path: str | Path) -> dict[str, Any]:
    """Read a prompt file in the host's JSON format, without checking its prompts.

    Raises:
        PromptError: the file is unreadable, not JSON, or has no list of prompts.
    """
    if not isinstance(path, (str, Path)):
        raise PromptError(f"prompts is a {type(path).__name__}; name a JSON file in the host's format")
    try:
        data = read_json(Path(path))
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {path}: {error.strerror}") from error
    except ValueError as error:
        raise PromptError(f"the prompt file {path} is not JSON: {one_line(error)}") from error
    if not isinstance(data, dict) or not isinstance(data.get("prompts"), list):
        raise PromptError(f'the prompt file {path} has no list "prompts" at its top level')
    return data


def as_token_ids(data: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Convert prompts to token ids ``[pos]``, with matching labels and word positions.

    Prompts of token ids are unchanged, with a warning if they lack BOS. Text that does not start with
    BOS gets it in front; ``seq_labels`` and ``word_idxs``, which count without BOS, then shift by one.

    Raises:
        PromptError: there are no prompts; or a prompt lacks a key, is empty, has clean and corrupt
            prompts of different length, differs in length from the first, has an answer of several
            tokens, or a word or token id unknown to the model. The message names the prompt's index.
    """
    raw = data["prompts"]
    if not raw:
        raise PromptError('there are no prompts: the list "prompts" is empty')
    _check_aligned_labels(data)
    prompts = [_prompt(index, entry, encoder) for index, entry in enumerate(raw)]
    _check_one_length(prompts)
    if encoder.bos is not None and any(prompt["clean"][0] != encoder.bos for prompt in prompts):
        warn(
            f"prompts of token ids are used unchanged, but some do not begin with {encoder.bos}, the "
            "BOS token that is prepended to text; a model trained with it behaves differently without"
        )
    first, labels = raw[0]["clean"], data.get("seq_labels")
    length = len(encoder.encode(first) if isinstance(first, str) else first)
    shift = len(prompts[0]["clean"]) - length
    _check_places(data, length)
    return {
        "seq_labels": None if labels is None else ["BOS"] * shift + labels,
        "word_idxs": {word: at + shift for word, at in data.get("word_idxs", {}).items()},
        "prompts": prompts,
    }


def _prompt(index: int, entry: Any, encoder: Encoder) -> dict[str, list[int]]:
    missing = [key for key in KEYS if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise PromptError(f"prompt {index} lacks {', '.join(missing)}; it needs {', '.join(KEYS)}")
    try:
        prompt = {key: _tokens(entry[key], encoder) for key in ("clean", "corrupt")}
        prompt |= {key: _answers(entry, key, encoder) for key in ("answers", "wrong_answers")}
    except PromptError as error:
        raise PromptError(f"prompt {index}: {error}") from error
    clean, corrupt = len(prompt["clean"]), len(prompt["corrupt"])
    if clean != corrupt:
        raise PromptError(
            f"prompt {index}: clean has {clean} tokens and corrupt {corrupt}; both need the same number"
        )
    return prompt


def _tokens(prompt: Any, encoder: Encoder) -> list[int]:
    if not isinstance(prompt, str):
        return _checked_ids(prompt, encoder)
    ids = _checked_ids(encoder.encode(prompt), encoder)
    return ids if encoder.bos in (None, ids[0]) else [encoder.bos, *ids]


def _answers(entry: dict[str, Any], key: str, encoder: Encoder) -> list[int]:
    answers = entry[key]
    if not isinstance(answers, list) or not answers:
        raise PromptError(f"{key} must be a list of words or token ids, not {answers!r}")
    if not all(isinstance(answer, str) for answer in answers):
        return _checked_ids(answers, encoder)
    encoded = [encoder.encode(answer) for answer in answers]
    for answer, ids in zip(answers, encoded, strict=True):
        if len(ids) != 1:
            raise PromptError(f"the answer {answer!r} is {len(ids)} tokens; it must be one")
    return [ids[0] for ids in encoded]


def _checked_ids(ids: Any, encoder: Encoder) -> list[int]:
    if not isinstance(ids, list) or not ids:
        raise PromptError(f"expected text or a list of token ids, not {ids!r}")
    for value in ids:
        if type(value) is not int or not 0 <= value < encoder.d_vocab:
            raise PromptError(f"{value!r} is not a token id; ids go from 0 to {encoder.d_vocab - 1}")
    return ids


def _check_one_length(prompts: list[dict[str, list[int]]]) -> None:
    expected = len(prompts[0]["clean"])
    for index, prompt in enumerate(prompts):
        if len(prompt["clean"]) != expected:
            raise PromptError(
                f"prompt {index} has {len(prompt['clean'])} tokens and prompt 0 has {expected}; "
                "all prompts of a file need the same number"
            )


def _check_aligned_labels(data: dict[str, Any]) -> None:
    labels, places = data.get("seq_labels"), data.get("word_idxs", {})
    if labels is not None and not (
        isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    ):
        raise PromptError('"seq_labels" must be a list with one label per token')
    if not isinstance(places, dict) or not all(type(at) is int for at in places.values()):
        raise PromptError('"word_idxs" must map words to token positions')


def _check_places(data: dict[str, Any], length: int) -> None:
    """Check labels and word positions against the ``length`` of a prompt in tokens, without BOS."""
    labels = data.get("seq_labels")
    if labels is not None and len(labels) != length:
        raise PromptError(f'"seq_labels" holds {len(labels)} labels, but prompts have {length} tokens')
    for word, at in data.get("word_idxs", {}).items():
        if not 0 <= at < length:
            raise PromptError(f'"word_idxs" puts {word!r} at {at}, but prompts have {length} tokens')
