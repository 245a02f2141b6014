"""Generated prompts: what each task asks, both kinds of corruption, splits, and determinism."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pahq_plugin
from pahq_plugin.problems import vocabulary
from pahq_plugin.problems.generated import TASKS, generate, split_of
from pahq_plugin.problems.tracr import tracr_prompts

SOURCES = str(Path(pahq_plugin.__file__).parents[1])
LENGTHS = {"ioi": 15, "greater-than": 16, "induction": 16}
IOI_DIGEST = "229815687878d881368633b1580e91e41a9d8a194eccad4e7b81a13f34e59e1b"
REVERSE_DIGEST = "b2ce0fb53772629a0e9a2910d13dd054e965516d0bdb12e960618160b3a1b9b6"


def digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def words(prompt: dict[str, Any], key: str) -> list[str]:
    return vocabulary.decode(prompt[key])


def first_difference(prompt: dict[str, Any]) -> int:
    halves = zip(prompt["clean"], prompt["corrupt"], strict=True)
    return next(at for at, (clean, corrupt) in enumerate(halves) if clean != corrupt)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_of_one_length_and_all_different(task: str, split: Any) -> None:
    data = generate(task, 300, seed=1, split=split)
    bos = vocabulary.encode(["BOS"])[0]
    for prompt in data["prompts"]:
        assert len(prompt["clean"]) == len(prompt["corrupt"]) == LENGTHS[task]
        assert prompt["clean"][0] == prompt["corrupt"][0] == bos
        assert prompt["answers"] and prompt["wrong_answers"]
        assert not set(prompt["answers"]) & set(prompt["wrong_answers"])
    assert len({tuple(prompt["clean"]) for prompt in data["prompts"]}) == 300
    assert len(data["seq_labels"]) == LENGTHS[task]
    assert all(0 < at < LENGTHS[task] for at in data["word_idxs"].values())


@pytest.mark.parametrize(("task", "late"), [("ioi", 10), ("greater-than", 11), ("induction", 15)])
def test_corruption_starts_early_in_half_and_late_in_half(task: str, late: int) -> None:
    starts = [first_difference(prompt) for prompt in generate(task, 40, seed=2)["prompts"]]
    assert starts.count(late) == 20
    # "When" stands before the first name, so that this IOI template cannot differ at position 1.
    assert set(starts) - {late} == ({1, 2} if task == "ioi" else {1})


def test_ioi_asks_for_the_name_that_is_not_repeated() -> None:
    for prompt in generate("ioi", 200, seed=3)["prompts"]:
        clean = words(prompt, "clean")
        named = [word for word in clean if word in vocabulary.NAMES]
        (answer,), (wrong,) = words(prompt, "answers"), words(prompt, "wrong_answers")
        assert (named.count(answer), named.count(wrong), len(named)) == (1, 2, 3)
        assert clean[10] == wrong


def test_ioi_corruption_is_other_names_or_the_other_subject() -> None:
    for prompt in generate("ioi", 100, seed=4)["prompts"]:
        clean, corrupt = words(prompt, "clean"), words(prompt, "corrupt")
        if first_difference(prompt) == 10:
            assert corrupt[10] == words(prompt, "answers")[0]
            assert clean[11:] == corrupt[11:]
        else:
            names = [word for word in corrupt if word in vocabulary.NAMES]
            assert len(set(names)) == 3 and not set(names) & set(clean)


def test_ioi_has_both_templates_and_both_orders() -> None:
    kinds = set()
    for prompt in generate("ioi", 40, seed=5)["prompts"]:
        clean = words(prompt, "clean")
        first_name = clean[2] if clean[1] == "When" else clean[1]
        kinds.add((clean[1] == "When", first_name == words(prompt, "answers")[0]))
    assert len(kinds) == 4


def test_greater_than_answers_are_the_later_years() -> None:
    for prompt in generate("greater-than", 200, seed=6)["prompts"]:
        clean, corrupt = words(prompt, "clean"), words(prompt, "corrupt")
        year = int(clean[11])
        assert clean[10] == clean[15] and corrupt[10] == corrupt[15] and corrupt[11] == "01"
        assert [int(word) for word in words(prompt, "answers")] == list(range(year + 1, 100))
        assert [int(word) for word in words(prompt, "wrong_answers")] == list(range(year + 1))


def test_induction_calls_for_what_followed_the_last_word() -> None:
    for prompt in generate("induction", 200, seed=7)["prompts"]:
        for half, key in (("clean", "answers"), ("corrupt", "wrong_answers")):
            sequence = words(prompt, half)
            followers = {b for a, b in pairwise(sequence[:-1]) if a == sequence[-1]}
            assert followers == set(words(prompt, key))
    periods = {
        words(prompt, "clean").index(words(prompt, "clean")[1], 2) - 1
        for prompt in generate("induction", 40, seed=7)["prompts"]
    }
    assert periods == {8, 9, 10, 11}


def content(task: str, prompt: dict[str, Any]) -> tuple[str, ...]:
    clean = words(prompt, "clean")
    if task == "ioi":
        names = sorted({word for word in clean if word in vocabulary.NAMES})
        (place,) = set(clean) & set(vocabulary.PLACES)
        return (*names, place, clean[13])
    if task == "greater-than":
        return clean[1], clean[3], clean[10], clean[11]
    return tuple(clean[1 : clean.index(clean[1], 2)])


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_disjoint_in_content(task: str) -> None:
    found = {
        split: {content(task, prompt) for prompt in generate(task, 1500, 8, split)["prompts"]}
        for split in ("train", "test")
    }
    assert not found["train"] & found["test"]
    for split, contents in found.items():
        assert {split_of(task, entry) for entry in contents} == {split}


@pytest.mark.parametrize("task", TASKS)
def test_seeds_and_splits_give_different_prompts(task: str) -> None:
    def clean(seed: int, split: Any) -> list[list[int]]:
        return [prompt["clean"] for prompt in generate(task, 20, seed, split)["prompts"]]

    assert clean(0, "test") == clean(0, "test")
    assert clean(0, "test") != clean(1, "test")
    assert clean(0, "test") != clean(0, "train")


def test_the_same_prompts_in_every_process() -> None:
    assert digest(generate("ioi", 20, 0, "test")) == IOI_DIGEST
    assert digest(tracr_prompts("reverse", 0)) == REVERSE_DIGEST
    code = (
        "import hashlib, json; from pahq_plugin.problems.generated import generate; "
        "print(hashlib.sha256(json.dumps(generate('ioi', 20, 0, 'test'), sort_keys=True)"
        ".encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": SOURCES}
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == IOI_DIGEST
