"""Types as others see them: a script against the installed packages, and no public name without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[1]
SCORES = {"pahq_plugin": 0.93, "pahq_exporters": 0.87}
"""Of pyright: the share of all names, those of private modules too, whose type is written out."""

SCRIPT = """\
from typing import assert_type

import pahq_plugin as pahq
from pahq_exporters import GraphJson, read_graph_json, write_graph_json

problem = pahq.load_problem("ioi", batch_size=8)
result = pahq.discover(problem.model, problem.train_loader, method="pahq", threshold=0.01)
assert_type(result, pahq.Discovery)
assert_type(result.decisions, tuple[pahq.Decision, ...])
for decision in result.decisions:
    assert_type(decision.effect, float)
    assert_type(decision.kept, bool)
assert_type(pahq.methods(), tuple[str, ...])
assert_type(read_graph_json(write_graph_json(result, "c.json"), problem.model), GraphJson)
with pahq.mixed_precision(problem.model, pahq.PrecisionConfig(low="int8")) as backend:
    assert_type(backend, pahq.Backend)
try:
    pahq.adapt(pahq.from_hugging_face("folder").wrapped_model)  # type: ignore[arg-type]
except pahq.PahqError as error:
    print(error)
"""
WRONG = {
    'pahq.load_problem(3)': "reportArgumentType",
    'pahq.discover("ioi", problem.train_loader)': "reportArgumentType",
    'pahq.PrecisionConfig(scale="rows")': "reportArgumentType",
    "pahq.dicover": "reportAttributeAccessIssue",
    'result.decisions[0].efect': "reportAttributeAccessIssue",
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as an installer lays them out, in a folder that stands for site-packages."""
    place = tmp_path_factory.mktemp("site")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "pahq_plugin", place / "pahq_plugin", ignore=unwanted)
    shutil.copytree(REPOSITORY / "exporters/pahq_exporters", place / "pahq_exporters", ignore=unwanted)
    return place


def pyright(folder: Path, installed: Path, *arguments: str) -> dict[str, Any]:
    """Its findings as JSON; ours come from ``installed``, packages of others from this environment."""
    assert (installed / "pahq_plugin/py.typed").exists()
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
        *arguments,
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},  # ahead of an editable install
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout)


def errors(found: dict[str, Any]) -> list[str]:
    return [
        f"{entry['range']['start']['line']}: {entry.get('rule')}: {entry['message']}"
        for entry in found["generalDiagnostics"]
        if entry["severity"] == "error"
    ]


def test_a_script_is_checked_against_the_installed_package(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert errors(pyright(tmp_path, installed, "script.py")) == []


def test_mistakes_in_a_script_are_found(installed: Path, tmp_path: Path) -> None:
    lines = [*SCRIPT.splitlines()[:8], *WRONG]
    (tmp_path / "script.py").write_text("\n".join(lines) + "\n")
    found = "\n".join(errors(pyright(tmp_path, installed, "script.py")))
    for number, rule in enumerate(WRONG.values(), start=8):
        assert f"{number}: {rule}" in found, found


@pytest.mark.parametrize("package", SCORES)
def test_every_public_name_has_a_type(package: str, installed: Path, tmp_path: Path) -> None:
    """And all of its members; private modules at least as completely as they were."""
    found = pyright(tmp_path, installed, "--verifytypes", package, "--ignoreexternal")
    report = found["typeCompleteness"]
    assert report["pyTypedPath"].startswith(str(installed)), report["pyTypedPath"]
    module = import_module(package)
    public = {f"{package}.{name}" for name in module.__all__}
    public |= {f"{getattr(module, name).__module__}.{name}" for name in module.__all__}
    unknown = [
        symbol["name"]
        for symbol in report["symbols"]
        if not symbol["isTypeKnown"]
        and (symbol["name"] in public or symbol["name"].rpartition(".")[0] in public)
    ]
    assert unknown == []
    assert report["completenessScore"] >= SCORES[package], report["exportedSymbolCounts"]
