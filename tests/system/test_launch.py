"""A command that was not started by ``torchrun`` is the only process, and imports nothing for it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.terminals import REPOSITORY


def test_one_process_imports_nothing() -> None:
    code = """if True:
        import sys
        from pahq_plugin.system.launch import launched
        with launched() as world:
            assert (world.rank, world.size, world.is_first) == (0, 1, True)
            assert world.collect("own") == ["own"]
        assert not {"torch", "numpy", "pahq_plugin.system.processes"} & set(sys.modules)
        """
    alone = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    for environment in (alone, alone | {"WORLD_SIZE": "1"}):
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)
