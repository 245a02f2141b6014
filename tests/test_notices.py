"""What the package says besides results: warnings that can be filtered, log lines that are quiet."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pahq_plugin as pahq
from pahq_plugin.cli.app import app
from pahq_plugin.system.warn import warn
from tests.helpers.small import loader, patchable, transformer

REPOSITORY = Path(__file__).resolve().parents[1]


def hooked() -> None:
    model = patchable(transformer())
    model.wrapped_model.blocks[0].attn.hook_z.add_hook(lambda value, hook: value)
    pahq.discover(model, loader(), method="acdc", threshold=0.05, engine="incremental", progress=False)


def test_a_warning_names_the_line_of_the_user() -> None:
    with pytest.warns(pahq.PahqWarning, match="using engine='host'") as said:
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


def test_commands_print_both_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)

    def examine() -> dict[str, object]:
        warn("on another engine")
        warn("on another engine")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logging.getLogger("pahq_plugin.engines.protocol").warning("fewer rows")
        logging.getLogger("pahq_plugin.engines.protocol").info("a detail")
        logging.getLogger("someone.else").warning("noise")
        return {}

    monkeypatch.setattr("pahq_plugin.cli.doctor.examine", examine)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0 and result.stdout == "{}\n"
    line = "warning: on another engine\n"
    assert result.stderr == line + line + "warning: fewer rows\n"
    assert [type(h) for h in logging.getLogger("pahq_plugin").handlers] == [logging.NullHandler]


def test_a_provider_that_does_not_load_is_a_warning() -> None:
    from pahq_exporters.session import _say_what_we_got

    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.warns(pahq.PahqWarning, match="CUDAExecutionProvider did not load .* CPUExecution"):
        _say_what_we_got(Session(), ["CUDAExecutionProvider", "CPUExecutionProvider"])
    _say_what_we_got(Session(), ["CPUExecutionProvider"])
