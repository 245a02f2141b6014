"""Files of searches and judgements: damaged and missing ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_plugin.compare.tables import read_material
from pahq_plugin.errors import ResultError
from tests.compare.swept import PIECES, PLAN


@pytest.mark.parametrize("name", ["result.json", "run.json", "search.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "[" * 100000])
def test_damaged_searches_are_named(name: str, text: str, copied: Path) -> None:
    folder = copied / "found" / PLAN.searches[0].folder
    (folder / name).write_text(text)
    with pytest.raises(ResultError, match=name) as error:
        read_material(PLAN, copied)
    assert str(folder) in str(error.value) and "delete" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_damaged_judgements_are_named(text: str, copied: Path) -> None:
    file = next((copied / "judged").glob("*.json"))
    file.write_text(text)
    with pytest.raises(ResultError, match=file.name):
        read_material(PLAN, copied)
    file.unlink()
    assert len(read_material(PLAN, copied).judged) == PIECES[1] - 1
