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
    "empty": ("", "must hold", "JSON"),
    "no JSON": ("prompts", "JSON"),
    "cut": ('{"prompts": [{"clean": [1', "JSON"),
    "no UTF-8": (b'{"prompts": "\xff"}', "JSON", "0xff"),
    "UTF-16": (json.dumps(prompts()).encode("utf-16"), "JSON"),
    "with a mark": (b"\xef\xbb\xbf{}", "JSON", "BOM"),
    "deep": ("[" * 100_000, "JSON"),
    "a number of a million digits": ('{"prompts": [' + "1" * 1_000_000 + "]}", "JSON"),
    "a list": ([prompts()], "must hold", "prompts"),
    "null": (None, "must hold"),
    "no prompts": ({}, "must hold", "'prompts'"),
    "prompts are a number": ({"prompts": 3}, "must hold"),
    "prompts are an object": ({"prompts": {"clean": [1]}}, "must hold"),
    "prompts are a string": ({"prompts": "abc"}, "holds no prompts"),
    "an empty list": ({"prompts": []}, "holds no prompts"),
    "a prompt is a list": ({"prompts": [[1, 2]]}, "prompts[0]", "object"),
    "a prompt is null": ({"prompts": [GOOD, None]}, "prompts[1]", "object"),
    "clean is missing": (prompts(clean=None), "prompts[1]['clean']", "token ids"),
    "corrupt is missing": (prompts(corrupt=None), "prompts[1]['corrupt']", "token ids"),
    "clean is text": (prompts(clean="When Mary"), "prompts[1]['clean'] is text", "tokeniser"),
    "clean is words": (prompts(clean=["a", "b"]), "prompts[1]['clean'] is text", "tokeniser"),
    "clean is a number": (prompts(clean=3), "prompts[1]['clean']", "token ids"),
    "clean is nested": (prompts(clean=[[1], [2]]), "prompts[1]['clean']", "token ids"),
    "fractions": (prompts(clean=[1.0, 2.0]), "prompts[1]['clean']", "token ids"),
    "truth values": (prompts(clean=[True, False]), "prompts[1]['clean']", "token ids"),
    "not a number": ('{"prompts": [{"clean": [NaN], "corrupt": [1]}]}', "NaN"),
    "answers are text": (prompts(answers=" Mary"), "prompts[1]['answers'] is text"),
    "answers are a number": (prompts(answers=5), "prompts[1]['answers']", "token ids"),
    "ragged": (prompts(clean=[1, 2, 3]), "[2, 3] tokens", "the same length"),
    "a short corrupt one": (prompts(corrupt=[1]), "[1, 2] tokens", "the same length"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case: str, tmp_path: Path) -> None:
    content, *words = BAD[case]
    with refused(PromptError, "p.json", *words):
        read_prompts(file(tmp_path / "p.json", content))


@pytest.mark.parametrize("name", ["missing.json", ".", "a" * 300, "nul\0.json"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with refused(PromptError):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True])
def test_a_limit_is_above_0(limit: Any, tmp_path: Path) -> None:
    with refused(ConfigError, "limit", "above 0"):
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
