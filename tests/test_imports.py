"""Imports point one way: a module imports only what stands above it in `ORDER`.

Every import statement counts, also inside functions and under ``TYPE_CHECKING``, and so does
``import_module("...")`` with its name written out.

1. A module of ``pahq_plugin`` imports no entry of `ORDER` behind its own; a package is one entry.
   The root package looks its names up lazily, so it is not checked itself, and importing a name
   from it counts as importing whatever stands last above the command line.
2. Nothing in ``pahq_plugin`` imports ``pahq_exporters``.
3. Only ``pahq_plugin/host`` and ``pahq_plugin/models`` import the host and what it is built on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = "pahq_plugin"

ORDER = (
    "errors",
    "labels",
    "choices",
    "system",
    "host",
    "metrics",
    "models",
    "problems",
    "precision",
    "results",
    "engines",
    "discovery",
    "compare",
    ROOT,  # names taken from the root package
    "cli",
    "__main__",
)
HOST_ONLY = {"auto_circuit", "transformer_lens", "tracr", "jax"}
READERS = {"host", "models"}
IMPORTING_CALLS = {"import_module", "__import__"}


def entry_of(module: str) -> str:
    """The entry of `ORDER` that holds a module: ``pahq_plugin.host.graph`` is in ``host``."""
    return module.split(".")[1] if "." in module else ROOT


def is_dunder(name: str) -> bool:
    """Whether a name is metadata, such as ``__version__``."""
    return name.startswith("__") and name.endswith("__")


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The full name of the module that a ``from ... import`` reads."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a source imports.

    ``from pahq_plugin import host`` is an import of ``pahq_plugin.host``; any other name from the
    root package, metadata aside, is an import of ``pahq_plugin``.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                base = absolute(node, module, is_package)
                if base != ROOT:
                    yield node.lineno, base
                    continue
                for alias in node.names:
                    if alias.name in ORDER:
                        yield node.lineno, f"{ROOT}.{alias.name}"
                    elif not is_dunder(alias.name):
                        yield node.lineno, ROOT
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name),
                args=[ast.Constant(value=str(target)), *_],
            ) if name in IMPORTING_CALLS:
                yield node.lineno, target


def violations(source: str, path: str) -> list[str]:
    """What the rules have against one source file; ``path`` is relative to the repository."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    own = entry_of(module)
    if module != ROOT and own not in ORDER:
        return [
            f"{path}: module {ROOT}.{own} is not in ORDER of tests/test_imports.py; add it behind "
            "everything that it imports (and to the list in CONTRIBUTING.md)"
        ]
    found = []
    for line, target in imports(source, module, is_package):
        where = f"{path}:{line}: {module} imports {target}"
        package = target.split(".")[0]
        if package == "pahq_exporters":
            found.append(f"{where}, but nothing in {ROOT} may import pahq_exporters")
        elif package in HOST_ONLY and own not in READERS:
            found.append(f"{where}, but only {ROOT}/host and {ROOT}/models may import {package}")
        elif package == ROOT and module != ROOT:
            entry = entry_of(target)
            if entry not in ORDER:
                found.append(f"{where}, but ORDER of tests/test_imports.py has no {entry}")
            elif entry != own and ORDER.index(entry) > ORDER.index(own):
                found.append(f"{where}, but {entry} stands behind {own} in ORDER")
    return found


def sources() -> list[str]:
    """Every source file of the plugin, relative to the repository."""
    return sorted(str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / ROOT).rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert f"{ROOT}/__init__.py" in sources()


@pytest.mark.parametrize("path", sources())
def test_imports_point_one_way(path: str) -> None:
    found = violations((REPOSITORY / path).read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


# The checker itself, on sources small enough to judge by eye.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("metrics.py", "from pahq_plugin.errors import MetricError"),
        ("metrics.py", "import pahq_plugin.host"),
        ("metrics.py", "from . import errors"),
        ("metrics.py", "import math\nfrom torch import nn"),
        ("precision/policy.py", "from pahq_plugin import host"),
        ("results/result.py", "from pahq_plugin import __version__"),
        ("host/graph.py", "from auto_circuit.types import Edge"),
        ("models/adapt.py", "import transformer_lens"),
        ("host/graph.py", "from .types import Edge\nfrom ..errors import GraphError"),
        ("host/__init__.py", "from .types import Edge"),
        ("engines/choose.py", "from pahq_plugin.engines.incremental import cones"),
        ("cli/app.py", "from pahq_plugin import discover"),
        ("__init__.py", "def f():\n    from pahq_plugin.cli import main"),
        ("__init__.py", "from pahq_plugin.errors import PahqError"),
    ],
)
def test_right_imports_pass(path: str, source: str) -> None:
    assert violations(source, f"{ROOT}/{path}") == []


@pytest.mark.parametrize(
    ("path", "source", "target"),
    [
        ("labels.py", "from pahq_plugin.metrics import kl_div", "metrics"),
        ("labels.py", "import pahq_plugin.precision.backend as b", "precision"),
        ("labels.py", "from pahq_plugin import precision", "precision"),
        ("labels.py", "from . import precision", "precision"),
        ("host/graph.py", "from ..metrics import kl_div", "metrics"),
        ("host/__init__.py", "from ..metrics import kl_div", "metrics"),
        ("engines/question.py", "from pahq_plugin.discovery.acdc import Sweep", "discovery"),
        ("discovery/acdc.py", "def f():\n    from pahq_plugin.compare import run", "compare"),
        (
            "discovery/acdc.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pahq_plugin.cli",
            "cli",
        ),
        (
            "models/load.py",
            "import importlib\nimportlib.import_module('pahq_plugin.problems')",
            "problems",
        ),
        ("discovery/acdc.py", "from pahq_plugin import discover", ROOT),
        ("discovery/acdc.py", "import pahq_plugin", ROOT),
        ("cli/app.py", "import pahq_plugin.__main__", "__main__"),
    ],
)
def test_an_import_from_behind_is_caught(path: str, source: str, target: str) -> None:
    (message,) = violations(source, f"{ROOT}/{path}")
    line = len(source.splitlines())
    assert message.startswith(f"{ROOT}/{path}:{line}: {ROOT}.{path.split('.')[0].split('/')[0]}")
    assert f"{target} stands behind" in message


@pytest.mark.parametrize("path", ["cli/app.py", "__init__.py", "host/graph.py"])
@pytest.mark.parametrize("source", ["import pahq_exporters", "from pahq_exporters.onnx import x"])
def test_importing_the_exporters_is_caught(path: str, source: str) -> None:
    (message,) = violations(source, f"{ROOT}/{path}")
    assert f"{path}:1:" in message and "may import pahq_exporters" in message


@pytest.mark.parametrize("package", sorted(HOST_ONLY))
@pytest.mark.parametrize("path", ["metrics.py", "engines/choose.py", "problems/tasks.py", "__init__.py"])
def test_importing_the_host_elsewhere_is_caught(path: str, package: str) -> None:
    (message,) = violations(f"import {package}.types", f"{ROOT}/{path}")
    assert f"only {ROOT}/host and {ROOT}/models may import {package}" in message


def test_an_unlisted_module_is_caught() -> None:
    (message,) = violations("", f"{ROOT}/novelty.py")
    assert f"{ROOT}.novelty is not in ORDER" in message and "add it" in message
    (message,) = violations("from pahq_plugin.novelty import x", f"{ROOT}/labels.py")
    assert "has no novelty" in message


MOST_ENTRIES, LONGEST = 14, 400


def test_the_house_stays_small() -> None:
    """Ten rooms and four files at the top; no file that cannot be read at one sitting."""
    top = [p for p in (REPOSITORY / ROOT).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert len([p for p in top if not is_dunder(p.stem)]) <= MOST_ENTRIES
    files = [*(REPOSITORY / ROOT).rglob("*.py"), *(REPOSITORY / "exporters").rglob("*.py")]
    lengths = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert not {name: n for name, n in lengths.items() if n > LONGEST}


def test_contributing_lists_every_module_in_this_order() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| module | what it is for |\n")[2].partition("\n\n")[0]
    names = [
        name for row in table.splitlines()[1:] for name in re.findall("`(\\w+)`", row.split("|")[1])
    ]
    assert names == [entry for entry in ORDER if entry not in (ROOT, "__main__")]


def test_no_entry_stands_twice() -> None:
    assert len(set(ORDER)) == len(ORDER)
