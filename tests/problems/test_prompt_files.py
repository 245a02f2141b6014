"""Prompt files of users: what is read, warned of and refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import pahq_plugin as pahq
from pahq_plugin.errors import PromptError
from pahq_plugin.problems import load_problem, vocabulary
from pahq_plugin.problems.generated import generate
from pahq_plugin.problems.vocabulary import WORDS
from tests.helpers.problems import outputs, prompts_of, text_pair, user_file


def test_own_prompts_as_text(tmp_path: Path) -> None:
    data = {
        "prompts": [text_pair() for _ in range(6)],
        "seq_labels": ["x"] * 14,
        "word_idxs": {"a": 1},
    }
    problem = load_problem("ioi", prompts=user_file(tmp_path, data), batch_size=2)
    assert (len(problem.train_loader), len(problem.test_loader)) == (1, 2)
    batch = next(iter(problem.train_loader))
    assert vocabulary.decode(batch.clean[0].tolist()) == ["BOS", *text_pair()["clean"].split()]
    assert vocabulary.decode(batch.answers[0].tolist()) == ["Mary"]
    assert problem.train_loader.seq_labels == ["BOS", *["x"] * 14]
    assert problem.train_loader.word_idxs == {"a": 2}
    assert outputs(problem, batch).argmax(-1).tolist() == batch.answers[:, 0].tolist()


def test_own_prompts_as_token_ids_or_with_bos_stay_as_they_are(tmp_path: Path) -> None:
    generated = generate("ioi", 20, seed=0)
    problem = load_problem("ioi", prompts=user_file(tmp_path, generated), batch_size=4)
    expected = [prompt["clean"] for prompt in generated["prompts"]]
    assert sorted(prompts_of(problem)) == sorted(expected)
    assert problem.train_loader.word_idxs == generated["word_idxs"]
    pair = text_pair()
    with_bos = text_pair(clean=f"BOS {pair['clean']}", corrupt=f"BOS {pair['corrupt']}")
    data = {"prompts": [with_bos] * 4, "word_idxs": {"a": 1}}
    loader = load_problem("ioi", prompts=user_file(tmp_path, data), batch_size=1).train_loader
    assert next(iter(loader)).clean.shape == (1, 15)
    assert loader.word_idxs == {"a": 1}


def test_order_of_own_prompts_follows_the_seed(tmp_path: Path) -> None:
    path = user_file(tmp_path, generate("ioi", 24, seed=0))
    orders = [prompts_of(load_problem("ioi", prompts=path, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


GOOD = text_pair()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"prompts": [text_pair(clean="When Zaphod")]}, "prompt 0: .*'Zaphod'"),
        ({"prompts": [text_pair(answers=["Zaphod"])]}, "prompt 0: .*'Zaphod'"),
        ({"prompts": [text_pair(clean="")]}, "prompt 0"),
        ({"prompts": [text_pair(answers=[1.5])]}, "1.5"),
        ({"prompts": [GOOD] * 9}, "at least 16"),
        ({"prompts": [{**GOOD, "clean": [0] + [1] * 39, "corrupt": [0] + [2] * 39}] * 16}, "40"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        load_problem("ioi", prompts=user_file(tmp_path, content))
    assert "\n" not in str(caught.value)


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
    with pytest.warns(pahq.PahqWarning, match="BOS"):
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
