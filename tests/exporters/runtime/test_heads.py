"""The file of FP32 heads: the right weights, or one line that says what is wrong with the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pahq_exporters.description import Description
from pahq_exporters.graph.high import packed_weights
from pahq_exporters.graph.write import DEFAULT, describe
from pahq_exporters.runtime.heads import Heads, write_heads
from pahq_plugin.errors import ExportError
from tests.helpers.refused import refused
from tests.helpers.small import small_model

MODEL = small_model()
KNOWN = replace(describe(MODEL, "dense", DEFAULT, 0, None, "all", Path("g.onnx")), id="this one")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("heads") / "heads.safetensors"
    write_heads(MODEL, KNOWN, path)
    return path.read_bytes()


def opened(tmp_path: Path, content: bytes, known: Description = KNOWN) -> Heads:
    path = tmp_path / "heads.safetensors"
    path.write_bytes(content)
    return Heads(path, known)


def read(heads: Heads) -> dict[tuple[int, int], Any]:
    return {(layer, head): heads.weights(layer, head) for layer in range(2) for head in range(4)}


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(content: bytes, header: Any) -> bytes:
    """The same data behind another header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + header_of(content)[1]


def test_it_holds_the_weights(good: bytes, tmp_path: Path) -> None:
    for (layer, head), own in read(opened(tmp_path, good)).items():
        expected = packed_weights(MODEL.blocks[layer].attn, head).numpy()
        assert own.dtype == np.float32 and np.array_equal(own, expected)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with refused(ExportError, str(path)):
            Heads(path, KNOWN)


def test_a_file_of_another_export_is_refused(good: bytes, tmp_path: Path) -> None:
    with refused(ExportError, "heads.safetensors"):
        opened(tmp_path, good, replace(KNOWN, id="another"))
    header, _ = header_of(good)
    for metadata in ({}, {"id": ["this one"]}, {"id": None}):
        with refused(ExportError):
            opened(tmp_path, with_header(good, header | {"__metadata__": metadata}))


def test_a_cut_file_is_refused_at_once(good: bytes, tmp_path: Path) -> None:
    size = len(good) - len(header_of(good)[1])
    for length in (0, 7, 8, 20, size - 1, size, len(good) - 1):
        with refused(ExportError, "heads.safetensors"):
            opened(tmp_path, good[:length])
    opened(tmp_path, good)  # it was the cut


@pytest.mark.parametrize("size", [1, 2**31, 2**63, 2**64 - 1, 99_999_999])
def test_a_header_size_that_lies_is_refused(size: int, good: bytes, tmp_path: Path) -> None:
    with refused(ExportError):
        opened(tmp_path, size.to_bytes(8, "little") + good[8:])


@pytest.mark.parametrize(
    "header", [b"\xff\xfe", b"[]", b"null", b"3", b'"x"', b"{", b"[" * 50_000, {"__metadata__": 3},
               {"__metadata__": None}]
)  # fmt: skip
def test_a_header_that_is_none_is_refused(header: Any, good: bytes, tmp_path: Path) -> None:
    with refused(ExportError):
        opened(tmp_path, with_header(good, header))


def moved(by: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: entry | {"data_offsets": [offset + by for offset in entry["data_offsets"]]}


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "half": moved(8192),
    "negative": moved(-8),
    "a block before": moved(-16384),
    "two blocks before": moved(-32768),
    "into the header": moved(-100),
    "behind the end": moved(10**6),
    "huge": moved(2**63),
    "larger than any": moved(10**400),
    "fractions": lambda entry: entry | {"data_offsets": [0.0, 16384.0]},
    "truth values": lambda entry: entry | {"data_offsets": [False, 16384]},
    "turned round": lambda entry: entry | {"data_offsets": entry["data_offsets"][::-1]},
    "too few": lambda entry: entry | {"data_offsets": [0]},
    "too many": lambda entry: entry | {"data_offsets": [0, 1, 2]},
    "text": lambda entry: entry | {"data_offsets": "ab"},
    "short": lambda entry: entry | {"data_offsets": [0, 16]},
    "other shape": lambda entry: entry | {"shape": [4, 4, 8, 32]},
    "flat": lambda entry: entry | {"shape": 4096},
    "no shape": lambda entry: {k: v for k, v in entry.items() if k != "shape"},
    "no offsets": lambda entry: {k: v for k, v in entry.items() if k != "data_offsets"},
    "a list": lambda entry: list(entry),
    "null": lambda entry: None,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_an_entry_that_lies_is_refused(lie: str, layer: int, good: bytes, tmp_path: Path) -> None:
    header, _ = header_of(good)
    header[f"blocks.{layer}"] = LIES[lie](header[f"blocks.{layer}"])
    with refused(ExportError, "heads.safetensors"):
        opened(tmp_path, with_header(good, header))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, good: bytes, tmp_path: Path) -> None:
    bad = good[:-4] + np.float32(value).tobytes()
    heads = opened(tmp_path, bad)
    heads.weights(1, 2)
    with refused(ExportError, "1.3"):
        heads.weights(1, 3)


def test_a_file_that_shrinks_is_refused(good: bytes, tmp_path: Path) -> None:
    heads = opened(tmp_path, good)
    (tmp_path / "heads.safetensors").write_bytes(good[:-4])
    with refused(ExportError):
        heads.weights(1, 0)
    (tmp_path / "heads.safetensors").unlink()
    with refused(ExportError):
        heads.weights(0, 0)


FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """What is read has the shape that it promises; nothing else happens."""
    try:
        found = read(opened(tmp_path, content))
    except ExportError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert {own.shape for own in found.values()} == {(4, KNOWN.d_model, KNOWN.d_head)}


@FUZZ
@given(data=st.data())
def test_any_header_is_read_or_refused(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    values = st.none() | st.integers() | st.integers(-9, 99) | st.floats() | st.text(max_size=4)
    some = values | st.lists(values, max_size=4)
    header, _ = header_of(good)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*header, "blocks.2"]))
        if isinstance(header.get(key), dict) and data.draw(st.booleans()):
            header[key] = header[key] | {data.draw(st.sampled_from([*header[key]])): data.draw(some)}
        else:
            header[key] = data.draw(some)
    is_read_or_refused(tmp_path, with_header(good, header))


@FUZZ
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    end = len(good) - len(header_of(good)[1]) + 16
    first = data.draw(st.integers(0, end))
    last = data.draw(st.integers(first, end))
    is_read_or_refused(tmp_path, good[:first] + data.draw(st.binary(max_size=9)) + good[last:])
