"""Hostile values, and valid documents with some of their values damaged."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """Text that stands in a document as it is, whatever the format makes of it."""

    text: str


@dataclass(frozen=True)
class Twice:
    """The value of a key that appears twice in its object."""

    first: Any
    second: Any


MARKUP = "</script><img src=x onerror=alert(1)>"
"""Must never stand in a page as it is."""

NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 7, 8, 2**31, 2**63, -(2**63), 2**64, 10**22, 10**400, -(10**400), 0.5, 1.0, -0.0,
    1e-9,
    0.01, 5e-324, 1e308, -1e308, math.nan, math.inf, -math.inf, True, False,
]  # fmt: skip
RAW_NUMBERS = [
    Raw("1e999"),
    Raw("-1e999"),
    Raw("9" * 5000),
    Raw("-0"),
    Raw("1E400"),
    Raw("0x10"),
    Raw("01"),
]
TEXTS: list[str] = [
    "", " ", "\0", "\n", "a\nb", "a\r\nb", "\x1b[31mred", "\x9b31m", "\ud800", "\udfff\ud800",
    "\u2028", "\ufeff",
    "../../../x", "../x", "/etc/passwd", "/", "..", ".", "~", "$HOME", "C:\\x", "a/b", "a" * 300,
    "x" * 50_000,
    MARKUP, "<b>", "&amp;", "[red]", "[/]", "[/red]", "%s%n{0}", "`id`", "$(id)", "; rm -rf x", "²",
    "１",
    "nan", "inf", "-inf", "None", "true", "1", "-1", "1e5", "9" * 5000, "->", "a->b", "->->", "A0.0",
    "MLP 0",
    "Resid Start", "Resid End", "A0.0->Resid End", "Resid End->Resid Start", "A0.0->A0.0",
    "A0.0->A0.0.Q",
    f"A{'9' * 5000}.0->Resid End", "A99999999999.99999999->Resid End", "²0->b", "__class__", "__proto__",
    "auto", "host", "acdc", "pahq", "eap", "random", "mse", "resample", "zero", "fp32", "int8", "ioi",
    "kl_div", "logit_diff", "fp8_e4m3", "high", "low", "\u202e", "é", "😀", "word " * 30,
    "cos\nsystem\n(S'id'\ntR.",
]  # fmt: skip
NESTED: list[Any] = [
    None, [], {}, [[]], [None], [0], [1, 2], ["a"], [True], {"": None}, {"a": {"a": []}}, [[1], [2]],
    [{}],
    [math.nan], [0.5, "a"], [-1], {"0": 0},
]  # fmt: skip
RAW_NESTED = [
    Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 3_000 + "1" + "}" * 3_000),
    Raw("[" * 900 + "]" * 900),
    Raw(""), Raw("nul"), Raw("'a'"), Raw('"\\x"'), Raw('"\n"'), Raw('"\\ud800"'), Raw('"\\u0000"'),
    Raw("1979-05-27T07:32:00Z"), Raw("07:32:00"), Raw("null"), Raw("{}"),
]  # fmt: skip

VALUES = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(NESTED),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
"""Python values."""

WRITTEN = st.one_of(VALUES, st.sampled_from([*RAW_NUMBERS, *RAW_NESTED]))
"""The same, and what only a file can hold."""

CHANGES = (
    "replace",
    "replace",
    "replace",
    "other",
    "remove",
    "add",
    "twice",
    "wrap",
    "scale",
    "exchange",
)


@st.composite
def damaged(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """One of the documents, with one to three changes (and now and then as it is)."""
    whole = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 1, 2, 2, 3)))):
        container, key = _place(draw, whole)
        _change(draw, container, key, whole)
    return whole[0]


def _place(draw: st.DrawFn, whole: list[Any]) -> tuple[Any, Any]:
    """Somewhere in a document: a container and a key of it."""
    container, key = whole, 0
    while isinstance(container[key], (dict, list)) and container[key]:
        if draw(st.integers(0, 5)) == 0:
            break
        container = container[key]
        key = draw(
            st.sampled_from(list(container) if isinstance(container, dict) else range(len(container)))
        )
    return container, key


def _change(draw: st.DrawFn, container: Any, key: Any, whole: list[Any]) -> None:
    value, what, new = container[key], draw(st.sampled_from(CHANGES)), copy.deepcopy(draw(WRITTEN))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if what == "remove" and container is not whole:
        del container[key]
    elif what == "add" and isinstance(value, dict):
        value[draw(st.sampled_from([*TEXTS[:60], "neurons", "seed", "format", "high"]))] = new
    elif what == "add" and isinstance(value, list):
        value.insert(draw(st.integers(0, len(value))), new)
    elif what == "twice" and isinstance(container, dict):
        container[key] = Twice(value, new)
    elif what == "wrap":
        container[key] = [value]
    elif what == "scale" and number and abs(value) < 2**64:
        container[key] = value * draw(st.sampled_from((-1, 0, 1.0, 1e-300, 2, 10**30)))
    elif what == "exchange":
        other, place = _place(draw, whole)
        if other is not whole and container is not whole:
            container[key] = copy.deepcopy(other[place])
    elif what == "other" and isinstance(value, str) and value:
        at = draw(st.integers(0, len(value)))
        container[key] = value[:at] + draw(st.sampled_from(TEXTS)) + value[at:]
    else:
        container[key] = new


def json_text(value: Any) -> str:
    """JSON, with numbers that it has no words for as Python writes them."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Twice):
        return json_text(value.second)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(_pairs(value)) + "}"
    return json.dumps(value)


def _pairs(record: dict[str, Any]) -> list[str]:
    pairs = []
    for key, value in record.items():
        values = [value.first, value.second] if isinstance(value, Twice) else [value]
        pairs += [f"{json.dumps(key)}: {json_text(one)}" for one in values]
    return pairs


def toml_text(content: dict[str, Any]) -> str:
    """TOML: one line a key, tables inside in braces."""
    if not isinstance(content, dict):
        return _toml(content)
    lines = []
    for key, value in content.items():
        values = [value.first, value.second] if isinstance(value, Twice) else [value]
        lines += [f"{_toml(key)} = {_toml(one)}\n" for one in values]
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Twice):
        return _toml(value.second)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else json.dumps(value)


def written(documents: Sequence[Any], text: Any = json_text) -> st.SearchStrategy[bytes]:
    """Damaged documents as the bytes of a file."""
    return damaged(documents).map(lambda value: text(value).encode("utf-8", "surrogatepass"))
