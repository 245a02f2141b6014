"""Text prompts for hub models, with a tokenizer that splits as GPT-2's does."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pahq_plugin.errors import PromptError
from pahq_plugin.problems.templates import TEXT_TASKS, text_prompts
from tests.helpers.hub import small_tokenizer

TOKENIZER = small_tokenizer()


def tokens(text: str, tokenizer: Any = TOKENIZER) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token.replace("Ġ", " ") for token in tokenizer.convert_ids_to_tokens(ids)]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_one_token_length_and_single_token_answers(task: str, aligned: bool) -> None:
    prompts = text_prompts(task, TOKENIZER, 40, seed=0, aligned=aligned)["prompts"]
    lengths = {len(tokens(prompt[half])) for prompt in prompts for half in ("clean", "corrupt")}
    assert len(lengths) == 1
    assert len({prompt["clean"] for prompt in prompts}) == 40
    for prompt in prompts:
        assert prompt["clean"] != prompt["corrupt"]
        assert not set(prompt["answers"]) & set(prompt["wrong_answers"])
        for answer in (*prompt["answers"], *prompt["wrong_answers"]):
            assert tokens(answer) == [answer] != ["<unk>"]


def test_ioi_positions_hold_for_every_aligned_prompt() -> None:
    data = text_prompts("ioi", TOKENIZER, 30, seed=1, aligned=True)
    at = data["word_idxs"]
    for prompt in data["prompts"]:
        clean = tokens(prompt["clean"])
        assert [clean[at["IO"]]] == prompt["answers"]
        assert [clean[at["S1"]], clean[at["S2"]]] == prompt["wrong_answers"] * 2
        assert at["S1+1"] == at["S1"] + 1 and at["end"] == len(clean) - 1


def test_ioi_mixes_templates_and_orders_and_then_names_no_positions() -> None:
    data = text_prompts("ioi", TOKENIZER, 60, seed=2)
    assert data["word_idxs"] == {}
    answer_first = [
        prompt["clean"].index(prompt["answers"][0]) < prompt["clean"].index(prompt["wrong_answers"][0])
        for prompt in data["prompts"]
    ]
    assert 10 < sum(answer_first) < 50
    fillings = r"\b[A-Z][a-z]+(?= and | \w+ed | gave)|(?<=and )[A-Z][a-z]+|(?<=the )\w+|(?<= a )\w+"
    assert len({re.sub(fillings, "_", prompt["clean"]) for prompt in data["prompts"]}) > 1


def test_greater_than_years() -> None:
    data = text_prompts("greater-than", TOKENIZER, 40, seed=3)
    for prompt in data["prompts"]:
        clean, corrupt = tokens(prompt["clean"]), tokens(prompt["corrupt"])
        place = data["word_idxs"]["YY"]
        year = int(clean[place])
        assert prompt["answers"] == [f"{later:02d}" for later in range(year + 1, 100)]
        assert prompt["wrong_answers"] == [f"{other:02d}" for other in range(year + 1)]
        assert corrupt[place] == "01" and clean[place - 1] == clean[-1] == corrupt[-1]
        assert [a for a, b in zip(clean, corrupt, strict=True) if a != b] == [clean[place]]


def test_docstring_positions() -> None:
    data = text_prompts("docstring", TOKENIZER, 30, seed=4)
    at = data["word_idxs"]
    for prompt in data["prompts"]:
        clean, corrupt = tokens(prompt["clean"]), tokens(prompt["corrupt"])
        assert clean[at["A_def"]] == clean[at["A_doc"]] != corrupt[at["A_doc"]]
        assert clean[at["B_def"]] == clean[at["B_doc"]] != corrupt[at["B_doc"]]
        assert [clean[at["C_def"]]] == prompt["answers"]
        assert clean[at[",_B"]] == "," and at[",_B"] == at["B_def"] + 1
        assert clean[at["param_2"]] == clean[at["param_3"]] == "param"
        assert at["param_3"] == len(clean) - 1
        assert prompt["clean"].endswith("\n    :param")
        assert not {corrupt[at["A_def"]], corrupt[at["B_def"]]} & {*clean}


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_seeds(task: str) -> None:
    first = text_prompts(task, TOKENIZER, 10, seed=0)
    assert first == text_prompts(task, TOKENIZER, 10, seed=0)
    assert first["prompts"] != text_prompts(task, TOKENIZER, 10, seed=1)["prompts"]


def test_a_name_that_the_tokenizer_splits_is_not_used() -> None:
    splitting = small_tokenizer(without="Michael")
    assert len(tokens(" Michael", splitting)) == 2
    with_it, without = (
        "".join(prompt["clean"] for prompt in text_prompts("ioi", used, 200, seed=5)["prompts"])
        for used in (TOKENIZER, splitting)
    )
    assert "Michael" in with_it
    assert "Michael" not in without


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    def by_letter(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    for task in TEXT_TASKS:
        with pytest.raises(PromptError, match="single tokens"):
            text_prompts(task, by_letter, 4, seed=0)
