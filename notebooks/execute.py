"""Executes the notebooks of this folder and writes their outputs back: ``python -m notebooks.execute``.

Each runs in a new kernel and an empty folder, so that none needs another one's files. Cells with the tag
``needs-hub`` are left out. What differs from run to run is taken out of the outputs: times, memory,
progress, log lines on standard error. Outputs of cells with the tag ``varies`` differ from machine to
machine; the test of this folder does not compare them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NEEDS_HUB, VARIES = "needs-hub", "varies"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
COST = re.compile(r'\n<p class="quiet pahq-cost">.*?</p>')
SECONDS = 300


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a new run, cleaned.

    Args:
        path: of the notebook.
        folder: in which it runs.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        skip_cells_with_tag=NEEDS_HUB,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | ENVIRONMENT)
    return cleaned(notebook)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run; changed in place."""
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        ran = NEEDS_HUB not in tags(cell)
        count += ran
        cell.execution_count = count if ran else None
        kept = [one for output in cell.outputs if (one := _cleaned(output, count)) is not None]
        cell.outputs = _joined(kept)
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Pieces of printed text as one: where a kernel cuts it is a matter of time."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _cleaned(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "execute_result":
        output.execution_count = count
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = COST.sub("", data["text/html"])
    return output if any(data.values()) or output.output_type == "error" else None


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Tags of a cell."""
    return cell.metadata.get("tags", [])


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell prints and shows as text; empty for cells whose outputs vary."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
            found.append("" if VARIES in tags(cell) else "\n".join(parts))
    return found


def main(arguments: list[str]) -> None:
    """Execute all notebooks, or those whose names start with an argument."""
    for path in notebooks():
        if arguments and not path.name.startswith(tuple(arguments)):
            continue
        print(f"executing {path.name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
