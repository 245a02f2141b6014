"""Wheel and sdist hold what they need; the wheel works with each Python there is, in an environment of
its own, from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

import pytest

import pahq_plugin as pahq
from pahq_exporters import export_onnx

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLED = "pahq_plugin/problems/bundled"
NEEDED = (
    "pahq_plugin/__init__.py",
    "pahq_plugin/py.typed",
    f"{BUNDLED}/model.safetensors",
    f"{BUNDLED}/config.json",
    f"{BUNDLED}/MODEL_CARD.md",
    "pahq_exporters/__init__.py",
    "pahq_exporters/py.typed",
    "pahq_plugin/schemas/discover.json",
    "pahq_exporters/schemas/run.json",
)
NOTICES = ("LICENSE", "THIRD_PARTY.md", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md")
PYTHONS = ("3.11", "3.12", "3.13")
MIB = 2**20


def run(*command: str | Path, folder: Path) -> str:
    """Run a command without network access to model hubs; what it printed."""
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONWARNINGS"}
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def members(wheel: Path) -> Sequence[str]:
    """Names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution of a copy: the checkout stays as it is."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in ("pyproject.toml", "README.md", "MANIFEST.in", "constraints.txt", *NOTICES):
        shutil.copy(REPOSITORY / file, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in ("pahq_plugin", "exporters"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=unwanted)
    run(sys.executable, "-m", "build", "--outdir", out, copy, folder=copy)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_what_it_needs(wheel: Path) -> None:
    names = members(wheel)
    assert wheel.name.startswith("pahq_plugin-") and wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in NEEDED if name not in names] == []
    packaged = {Path(name).parts[0] for name in names if ".dist-info/" not in name}
    assert packaged == {"pahq_plugin", "pahq_exporters"}
    sources = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "pahq_plugin").rglob("*.py")}
    assert sorted(sources - set(names)) == []


def test_both_carry_their_notices(wheel: Path) -> None:
    """And `twine check --strict` finds nothing: the description renders, the metadata is whole."""
    names = members(wheel)
    for notice in NOTICES[:2]:
        assert any(name.endswith(f".dist-info/licenses/{notice}") for name in names), notice
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert [notice for notice in NOTICES if notice not in inside] == []
    shown = run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, folder=wheel.parent)
    assert shown.count("PASSED") == 2, shown


def test_wheel_stays_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo(f"{BUNDLED}/model.safetensors").file_size <= 15 * MIB


def test_wheel_declares_the_command(wheel: Path) -> None:
    (name,) = [name for name in members(wheel) if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        entries = ConfigParser()
        entries.read_string(archive.read(name).decode())
    assert dict(entries["console_scripts"]) == {"pahq": "pahq_plugin.cli.app:main"}
    assert set(entries["pahq.engines"]) == {"onnx"}
    assert set(entries["pahq.commands"]) == {"export", "import", "run"}


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    there = sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python{version}"))
    for candidate in (shutil.which(f"python{version}"), *there):
        if candidate is None:
            continue
        asked = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_installed_wheel_finds_a_circuit_from_another_folder(
    version: str, wheel: Path, tmp_path: Path
) -> None:
    python_there = interpreter(version)
    if python_there is None:
        pytest.skip(f"no Python {version} on this machine")
    environment, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(python_there, "-m", "venv", environment, folder=elsewhere)
    constraints = REPOSITORY / "constraints.txt"
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, folder=elsewhere)

    where = run(
        python, "-c", "import pahq_plugin; print(pahq_plugin.__file__)", folder=elsewhere
    ).strip()
    assert Path(where).is_relative_to(environment), f"{where} is not the installed copy"

    pahq, out = environment / "bin" / "pahq", elsewhere / "found"
    run(pahq, "discover", "ioi", "--threshold", "0.1", "--out", out, folder=elsewhere)
    assert any(out.iterdir()), f"pahq discover left nothing in {out}"
    assert run(pahq, "show", out, folder=elsewhere).strip()


def test_a_deployment_has_numpy_and_onnxruntime_only(wheel: Path, tmp_path: Path) -> None:
    """The wheel without its dependencies runs a graph on prompts."""
    problem = pahq.load_problem("ioi")
    export_onnx(problem.model, tmp_path / "graph.onnx")
    batch = next(iter(problem.train_loader))
    pairs = zip(batch.clean.tolist(), batch.corrupt.tolist(), strict=True)
    prompts = {"prompts": [{"clean": clean, "corrupt": corrupt} for clean, corrupt in pairs]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", environment, folder=tmp_path)
    constraints = REPOSITORY / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "-c", constraints, "numpy", "onnxruntime", folder=tmp_path)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, folder=tmp_path)
    asked = ["graph.onnx", "--prompts", "prompts.json", "--edges", "A0.7->MLP 0", "--json"]
    found = json.loads(run(python, "-m", "pahq_exporters.run", *asked, folder=tmp_path))
    assert found["runs"][0]["kl_div"] > 0 and found["prompts"] == len(batch.clean)
    absent = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx', 'typer')])"
    assert run(python, "-c", absent, folder=tmp_path).strip() == "[None, None, None]"
