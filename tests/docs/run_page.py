"""Runs the blocks of a page in order: ``python -m tests.docs.run_page PAGE FOLDER [--slow]``.

Python blocks share one namespace, as those of somebody who reads along; shell blocks are commands in
the same folder, with the commands of this environment on the path. Blocks with a title are written as
files. Lines that install packages are left out: what is installed is not the page's to change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.docs.markdown import Block, blocks

INSTALLS = ("pip install", "python -m pip install")


def main(page: Path, folder: Path, slow: bool) -> None:
    """Run the page in the folder; the first block that fails ends the process."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if "not run" in block.marks or ("slow" in block.marks and not slow):
            continue
        where = f"{page}:{block.line}"
        print(f"--- {where}", flush=True)
        if block.title:
            Path(block.title).write_text(block.source, encoding="utf-8")
        if "first" in block.marks:
            shell(block.marks["first"], where)
        if block.language == "python" and not block.title:
            exec(compiled(block, where), namespace)
        elif block.language == "sh":
            shell(commands(block), where)


def compiled(block: Block, where: str) -> Any:
    """A Python block as code whose line numbers are the page's."""
    return compile("\n" * (block.line - 1) + block.source, where.rpartition(":")[0], "exec")


def commands(block: Block) -> str:
    """What a shell block runs here."""
    lines = block.source.splitlines()
    return "\n".join(line for line in lines if not line.startswith(INSTALLS))


def shell(source: str, where: str) -> None:
    """Run commands; the first that fails ends the process."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", source], stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{where}: exit code {done.returncode}")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--slow" in sys.argv[3:])
