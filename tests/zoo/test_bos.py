"""Prompts of token ids that lack the token that begins a sequence: a warning, they are others."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import pahq_plugin as pahq
from pahq_plugin.problems.vocabulary import WORDS

TEXT = {
    "clean": "When Mary and John went to the park , John gave a ball to",
    "corrupt": "When Mary and John went to the park , Anna gave a ball to",
    "answers": ["Mary"],
    "wrong_answers": ["John"],
}


def written(path: Path, begin: list[int]) -> Path:
    ids = {
        name: (begin if name in ("clean", "corrupt") else [])
        + [WORDS.index(word) for word in (text.split() if isinstance(text, str) else text)]
        for name, text in TEXT.items()
    }
    path.write_text(json.dumps({"prompts": [ids, ids]}))
    return path


def test_ids_without_bos_are_told(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", [])
    with pytest.warns(pahq.PahqWarning, match="some do not begin with 0, the BOS token that is"):
        pahq.load_problem("ioi", prompts=file, batch_size=1)


def test_ids_with_bos_are_the_text(tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps({"prompts": [TEXT, TEXT]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = (written(tmp_path / "p.json", [0]), text)
        problems = [pahq.load_problem("ioi", prompts=file, batch_size=1) for file in files]
    ids, words = (next(iter(problem.train_loader)).clean for problem in problems)
    assert ids.tolist() == words.tolist()
