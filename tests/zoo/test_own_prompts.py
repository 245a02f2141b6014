"""Prompt files of users: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pahq_plugin.errors import PromptError
from pahq_plugin.problems import load_problem, vocabulary
from pahq_plugin.problems.generated import generate
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
        ("{", "is not JSON"),
        ([1], 'no list "prompts"'),
        ({"pairs": []}, 'no list "prompts"'),
        ({"prompts": []}, "no prompts"),
        ({"prompts": [GOOD, {"clean": "a", "answers": ["a"]}]}, "prompt 1 lacks corrupt, wrong_a"),
        ({"prompts": [7]}, "prompt 0 lacks clean"),
        (
            {"prompts": [GOOD, GOOD, text_pair(corrupt="and " + GOOD["corrupt"])]},
            "prompt 2: clean has 15 tokens and corrupt 16",
        ),
        (
            {"prompts": [GOOD, text_pair(clean="and and", corrupt="and to")]},
            "prompt 1 has 3 tokens and prompt 0 has 15",
        ),
        ({"prompts": [text_pair(clean="When Zaphod")]}, "prompt 0: .* word 'Zaphod'"),
        ({"prompts": [text_pair(answers=["Zaphod"])]}, "prompt 0: .* word 'Zaphod'"),
        ({"prompts": [text_pair(answers=["Mary John"])]}, "'Mary John' is 2 tokens"),
        ({"prompts": [text_pair(answers=[])]}, r"prompt 0: answers must be .* not \[\]"),
        ({"prompts": [text_pair(clean="")]}, r"prompt 0: expected text or a list of token ids"),
        ({"prompts": [text_pair(clean=[0, 388])]}, "prompt 0: 388 is not a token id; .* 0 to 387"),
        ({"prompts": [text_pair(answers=[1.5])]}, "1.5 is not a token id"),
        ({"prompts": [text_pair(clean=5)]}, "expected text or a list of token ids, not 5"),
        (
            {"prompts": [GOOD] * 9},
            "too few prompts .* 8: 9; provide at least 16, or pass a smaller batch_size",
        ),
        ({"prompts": [GOOD], "word_idxs": {"a": "b"}}, '"word_idxs" must map'),
        ({"prompts": [GOOD], "seq_labels": "a"}, '"seq_labels" must be a list'),
        (
            {"prompts": [{**GOOD, "clean": [0] + [1] * 39, "corrupt": [0] + [2] * 39}] * 16},
            "40 tokens; the model reads at most 32",
        ),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        load_problem("ioi", prompts=user_file(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_unreadable_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"nowhere\.json: No such file"):
        load_problem("ioi", prompts=tmp_path / "nowhere.json")
    with pytest.raises(PromptError, match="Is a directory"):
        load_problem("ioi", prompts=tmp_path)


def test_prompts_that_are_no_file() -> None:
    with pytest.raises(PromptError, match="prompts is a dict; name a JSON file"):
        load_problem("ioi", prompts={"prompts": []})  # type: ignore[arg-type]
