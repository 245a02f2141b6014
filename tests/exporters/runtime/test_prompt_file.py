"""The reader of prompt files: token ids, or one line that says what is wrong with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pahq_exporters.runtime.prompt_file import PromptFile, read_prompts
from pahq_plugin.errors import ConfigError, PahqError, PromptError
from tests.helpers.refused import refused

GOOD = {"clean": [1, 2], "corrupt": [3, 4], "answers": [5], "wrong_answers": [6]}


def file(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def prompts(**changes: Any) -> dict[str, Any]:
    """A file of two prompts, the second with changes; ``None`` leaves an entry out."""
    changed = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return {"prompts": [GOOD, changed]}


def test_a_good_file_is_read(tmp_path: Path) -> None:
    made = file(tmp_path / "p.json", prompts(clean=[7, 8], answers=None))
    assert read_prompts(made) == PromptFile([[1, 2], [7, 8]], [[3, 4]] * 2, [[5], []], [[6], [6]])
    assert read_prompts(made, limit=1) == PromptFile([[1, 2]], [[3, 4]], [[5]], [[6]])
    assert len(read_prompts(made, limit=9).clean) == 2


BAD = {
    "empty": ("", "JSON"),
    "no JSON": ("prompts", "JSON"),
    "cut": ('{"prompts": [{"clean": [1', "JSON"),
    "no UTF-8": (b'{"prompts": "\xff"}', "JSON"),
    "UTF-16": (json.dumps(prompts()).encode("utf-16"), "JSON"),
    "with a mark": (b"\xef\xbb\xbf{}", "JSON"),
    "deep": ("[" * 100_000, "JSON"),
    "a number of a million digits": ('{"prompts": [' + "1" * 1_000_000 + "]}", "JSON"),
    "null": (None, "p.json"),
    "no prompts": ({}, "p.json"),
    "prompts are a number": ({"prompts": 3}, "p.json"),
    "prompts are an object": ({"prompts": {"clean": [1]}}, "p.json"),
    "prompts are a string": ({"prompts": "abc"}, "p.json"),
    "an empty list": ({"prompts": []}, "p.json"),
    "a prompt is a list": ({"prompts": [[1, 2]]}, "prompts[0]"),
    "a prompt is null": ({"prompts": [GOOD, None]}, "prompts[1]"),
    "clean is missing": (prompts(clean=None), "prompts[1]['clean']"),
    "corrupt is missing": (prompts(corrupt=None), "prompts[1]['corrupt']"),
    "clean is words": (prompts(clean=["a", "b"]), "prompts[1]['clean']"),
    "clean is nested": (prompts(clean=[[1], [2]]), "prompts[1]['clean']"),
    "fractions": (prompts(clean=[1.0, 2.0]), "prompts[1]['clean']"),
    "truth values": (prompts(clean=[True, False]), "prompts[1]['clean']"),
    "not a number": ('{"prompts": [{"clean": [NaN], "corrupt": [1]}]}', "NaN"),
    "answers are text": (prompts(answers=" Mary"), "prompts[1]['answers']"),
    "answers are a number": (prompts(answers=5), "prompts[1]['answers']"),
    "ragged": (prompts(clean=[1, 2, 3]), "[2, 3]"),
    "a short corrupt one": (prompts(corrupt=[1]), "[1, 2]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case: str, tmp_path: Path) -> None:
    content, word = BAD[case]
    with refused(PromptError, "p.json", word):
        read_prompts(file(tmp_path / "p.json", content))


@pytest.mark.parametrize("name", ["missing.json", ".", "a" * 300, "nul\0.json"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with refused(PromptError):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True])
def test_a_limit_is_above_0(limit: Any, tmp_path: Path) -> None:
    with refused(ConfigError, "limit"):
        read_prompts(file(tmp_path / "p.json", prompts()), limit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "prompts"]) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=6,
)
ENTRY = st.just([1, 2]) | st.lists(st.integers() | st.floats() | st.text(max_size=1), max_size=2) | JSON
NEARLY = st.fixed_dictionaries(
    {"prompts": st.lists(st.fixed_dictionaries(dict.fromkeys(GOOD, ENTRY)), max_size=2)}
)
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_read_or_refused(path: Path) -> None:
    """Nothing else happens, and what is read has the form that it promises."""
    try:
        read = read_prompts(path)
    except PahqError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert len({len(ids) for ids in [*read.clean, *read.corrupt]}) == 1
    for column in vars(read).values():
        assert len(column) == len(read.clean)
        assert all(type(token) is int for ids in column for token in ids)


@FUZZ
@given(record=JSON | NEARLY)
@example(record={"prompts": [GOOD | {"clean": [10**30, 1]}]})
def test_any_json_is_read_or_refused(record: Any, tmp_path: Path) -> None:
    is_read_or_refused(file(tmp_path / "p.json", record))


@FUZZ
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    good = json.dumps(prompts()).encode()
    first = data.draw(st.integers(0, len(good)))
    last = data.draw(st.integers(first, len(good)))
    content = good[:first] + data.draw(st.binary(max_size=6)) + good[last:]
    is_read_or_refused(file(tmp_path / "p.json", content))
