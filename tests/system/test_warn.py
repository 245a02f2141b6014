"""Warnings point at the line of the user and can be filtered; log lines are quiet."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import pahq_plugin as pahq
from pahq_plugin.system.warn import warn
from tests.helpers.small import loader, patchable, transformer

REPOSITORY = Path(__file__).resolve().parents[2]


def hooked() -> None:
    model = patchable(transformer())
    model.wrapped_model.blocks[0].attn.hook_z.add_hook(lambda value, hook: value)
    pahq.discover(model, loader(), method="acdc", threshold=0.05, engine="incremental", progress=False)


def test_a_warning_names_the_line_of_the_user() -> None:
    with pytest.warns(pahq.PahqWarning, match="host") as said:
        hooked()
    assert [warning.filename for warning in said] == [__file__]


def test_warnings_can_be_filtered() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=pahq.PahqWarning)
        hooked()
    with warnings.catch_warnings(), pytest.raises(pahq.PahqWarning):
        warnings.filterwarnings("error", category=pahq.PahqWarning)
        hooked()


def test_a_warning_is_one_line() -> None:
    with pytest.warns(pahq.PahqWarning, match=r"^one\\ntwo$"):
        warn("one\ntwo")


@pytest.mark.parametrize("package", ["pahq_plugin", "pahq_exporters"])
def test_log_lines_are_quiet_unless_asked_for(package: str) -> None:
    code = f"""if True:
        import logging, {package}
        logging.getLogger("{package}.engine.cap").warning("fewer rows")
        logging.basicConfig()
        logging.getLogger("{package}.engine.cap").warning("asked for")
        """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stderr == f"WARNING:{package}.engine.cap:asked for\n"


def test_a_provider_that_does_not_load_is_a_warning() -> None:
    from pahq_exporters.session import _say_what_we_got

    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.warns(pahq.PahqWarning, match="CUDAExecutionProvider"):
        _say_what_we_got(Session(), ["CUDAExecutionProvider", "CPUExecutionProvider"])
    _say_what_we_got(Session(), ["CPUExecutionProvider"])
