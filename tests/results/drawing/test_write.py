"""Files of ``pahq show``: names of two results, other weights, and odd characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_plugin.errors import PahqWarning
from pahq_plugin.results.drawing.write import Drawing, difference_of
from tests.helpers.records import decision, random_record, record_of, saved


def drawn(result: Path, page: Path, other: Path | None = None, dot: Path | None = None) -> str:
    """The page of a result, which is the first file that is reported."""
    said: list[str] = []
    Drawing(page, None if dot is None else str(dot), other).write(result, said.append)
    assert said[0] == f"wrote {page}" and len(said) == 1 + (dot is not None)
    return page.read_text(encoding="utf-8")


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    one, other = (saved(random_record(40), tmp_path / folder / "ioi") for folder in ("a", "b"))
    text = drawn(one, tmp_path / "page.html", other)
    assert f'"name":"{one}"' in text and f'"name":"{other}"' in text


def test_equal_names_and_edges_count_as_one_model(tmp_path: Path) -> None:
    edge = decision("a->b", 1.0)
    one = saved(record_of([edge], digest="1"), tmp_path / "one")
    two = saved(record_of([edge], digest="2"), tmp_path / "two")
    with pytest.warns(PahqWarning, match="different weights"):
        assert '"compare":true' in drawn(one, tmp_path / "page.html", two)
    with pytest.warns(PahqWarning, match="different weights"):
        assert difference_of(one, two).same_circuit


def test_halves_of_surrogate_pairs_do_not_stop_it(tmp_path: Path) -> None:
    record = record_of([decision("a\ud800->b", 1.0)], name="m\udfff")
    folder = saved(record, tmp_path / "r")
    assert "m?" in drawn(folder, tmp_path / "page.html", dot=tmp_path / "c.dot")
    assert (tmp_path / "c.dot").read_text(encoding="utf-8").startswith("digraph")
