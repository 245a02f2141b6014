"""Code run in the kernel of a notebook."""

from __future__ import annotations

from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


class Watched(NotebookClient):
    """Keeps every output as it comes, also those that are changed later."""

    def __init__(self, notebook: nbformat.NotebookNode, **options: Any) -> None:
        super().__init__(notebook, **options)
        self.seen: list[dict[str, Any]] = []

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data", "execute_result"):
            self.seen.append({"data": dict(msg["content"]["data"])})
        return super().process_message(msg, cell, cell_index)


def run_cells(*sources: str, fails: bool = False) -> tuple[list[dict[str, Any]], list[Any]]:
    """Run code as the cells of a notebook.

    Args:
        fails: whether the last cell raises.

    Returns:
        Every output as it came, and those that the last cell holds in the end.
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = Watched(notebook, timeout=300, kernel_name="python3")
    failed = False
    try:
        client.execute()
    except CellExecutionError:
        failed = True
    assert failed is fails, notebook.cells[-1].outputs
    return client.seen, notebook.cells[-1].outputs
