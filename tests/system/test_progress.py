"""Progress where it can be seen: a terminal, a notebook, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pahq_plugin.system.progress import in_notebook, progress_bar
from tests.helpers.notebook import run_cells
from tests.helpers.terminals import REPOSITORY, in_a_terminal

STEPS = """
import time
from pahq_plugin.system.progress import progress_bar
with progress_bar("edges", 1200) as bar:
    for done in range(0, 1201, 400):
        time.sleep({pause})
        bar(done, f"{{done // 10}} kept")
"""


def test_nothing_where_no_one_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("edges", 10) as bar:
        bar(3)
    with progress_bar("edges", 10, shown=False) as bar:
        bar(3, "2 kept")
    assert capfd.readouterr() == ("", "") and not in_notebook()


def test_colour_by_force_draws_no_bar_into_a_file() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(pause=0)],
        cwd=REPOSITORY,
        env=os.environ | {"FORCE_COLOR": "1"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == done.stdout == b""


def test_a_terminal_gets_a_bar() -> None:
    seen = in_a_terminal("-c", STEPS.format(pause=0.1), only_errors=True, code=0)
    assert "edges" in seen and "1200/1200" in seen and "120 kept" in seen


# In the kernel of a real notebook ----------------------------------------------------------------------


def test_a_notebook_gets_a_bar_that_goes_when_the_work_is_done() -> None:
    seen, final = run_cells(STEPS.format(pause=0.4))
    texts = [output["data"]["text/plain"] for output in seen if "data" in output]
    pages = [output["data"]["text/html"] for output in seen if "data" in output]
    assert any(text.startswith("edges 800/1,200 80 kept (") and "left" in text for text in texts)
    assert any('<progress max="1200" value="800"' in page for page in pages)
    assert [output["data"]["text/html"] for output in final] == [""]


def test_short_work_leaves_no_trace_in_a_notebook() -> None:
    assert run_cells(STEPS.format(pause=0)) == ([], [])


def test_after_an_error_the_bar_says_how_far_the_work_was() -> None:
    code = STEPS.format(pause=0.4) + "        if done == 800: raise KeyError('here')\n"
    _, final = run_cells(code, fails=True)
    bar, error = final
    assert bar["data"]["text/plain"].startswith("edges 800/1,200") and error["ename"] == "KeyError"
