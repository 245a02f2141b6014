"""The notebooks run, and still show what is stored in them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks import execute as recipes

FORMAT = re.compile(r"\b(fp32|bf16|int8)\b")
"""What heads and MLPs run in by default differs between processors."""

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
PATHS = [pytest.param(path, id=path.stem) for path in recipes.notebooks()]


def outline(text: str) -> tuple[str, list[float]]:
    """A text without its numbers and the widths that they take, and the numbers."""
    text = FORMAT.sub("format", text)
    numbers = [float(found.replace(",", "")) for found in NUMBER.findall(text)]
    return re.sub(r"\s+", " ", NUMBER.sub("#", text)), numbers


def test_there_are_all_seven() -> None:
    names = [path.stem for path in recipes.notebooks()]
    assert [name[:3] for name in names] == [f"0{n}_" for n in range(1, 8)]


@pytest.mark.parametrize("path", PATHS)
def test_a_notebook_runs_and_shows_what_is_stored(path: Path, tmp_path: Path) -> None:
    """Numbers may differ in their last digits: processors round in different orders."""
    stored = nbformat.read(path, 4)
    again = recipes.execute(path, tmp_path)
    pairs = zip(recipes.texts(stored), recipes.texts(again), strict=True)
    for place, (expected, found) in enumerate(pairs):
        assert outline(found)[0] == outline(expected)[0], place
        assert outline(found)[1] == pytest.approx(outline(expected)[1], rel=0.05, abs=0.02), place


@pytest.mark.parametrize("path", PATHS)
def test_a_stored_notebook_is_clean_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    stored = nbformat.reads(text, 4)
    nbformat.validate(stored)
    assert nbformat.writes(recipes.cleaned(nbformat.reads(text, 4))) == text.removesuffix("\n")
    assert len(text) < 100_000 and "/tmp/" not in text and "/home/" not in text
    for cell in stored.cells:
        if cell.cell_type != "code":
            continue
        hub = recipes.NEEDS_HUB in recipes.tags(cell)
        assert (cell.execution_count is None) == hub and not (hub and cell.outputs)
        assert not [output for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", PATHS)
def test_cells_that_need_the_hub_say_so(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    for before, cell in pairwise(cells):
        marked = recipes.NEEDS_HUB in recipes.tags(cell)
        asks = cell.cell_type == "code" and 'model="gpt2"' in cell.source
        assert marked or not asks
        assert not marked or "Needs the hub." in before.source


@pytest.mark.parametrize("path", PATHS)
def test_links_between_notebooks_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([\w.-]+\.ipynb)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).is_file(), target


def output(kind: str, **fields: Any) -> nbformat.NotebookNode:
    return nbformat.v4.new_output(kind, **fields)


def test_what_differs_from_run_to_run_is_taken_out() -> None:
    html = '<div>rows\n<p class="quiet pahq-cost">1.2 s, peak memory 3 MiB</p>\n</div>'
    cell = nbformat.v4.new_code_cell(
        "1",
        execution_count=7,
        outputs=[
            output("stream", name="stderr", text="100%|██| 8/8"),
            output("stream", name="stdout", text="a\n"),
            output("stream", name="stdout", text="b\n"),
            output("display_data", data={"text/plain": "", "text/html": ""}),
            output("execute_result", execution_count=7, data={"text/plain": "x", "text/html": html}),
        ],
    )
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    printed, shown = recipes.cleaned(notebook).cells[0].outputs
    assert printed.text == "a\nb\n" and cell.execution_count == shown.execution_count == 1
    assert shown.data["text/html"] == "<div>rows\n</div>" and "widgets" not in notebook.metadata


@pytest.mark.parametrize(
    ("found", "same"),
    [("kept 120 of 1,519: 0.511", True), ("kept 60 of 1,519: 0.51", False), ("kept 120", False)],
)
def test_the_comparison_can_fail(found: str, same: bool) -> None:
    (words, numbers), (others, theirs) = outline("kept 120 of 1,519: 0.51"), outline(found)
    assert (words == others and numbers == pytest.approx(theirs, rel=0.05, abs=0.02)) == same
