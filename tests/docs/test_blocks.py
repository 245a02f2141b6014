"""Every command and code block of the pages runs; what cannot is right as far as can be seen."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from typer.main import get_command

from pahq_plugin.cli.app import app
from pahq_plugin.compare.plan import make_plan
from tests.docs.markdown import MARKS, REPOSITORY, RUN, SHOWN, Block, blocks, name_of, pages

PAGES = {name_of(page): list(blocks(page.read_text(encoding="utf-8"))) for page in pages()}
QUICK = [page for page, found in PAGES.items() if any(b.language in RUN and not b.marks for b in found)]
SLOW = [page for page, found in PAGES.items() if any("slow" in block.marks for block in found)]


def run_page(page: str, folder: Path, *flags: str) -> None:
    """Run a page as a reader would, in an empty folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    roots = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'exporters'}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", str(REPOSITORY / page), str(folder), *flags],
        env=os.environ | {"PATH": path, "PYTHONPATH": roots, "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


SAMPLE = {"README.md"}
"""Pages that `make test` runs; each command imports everything anew, which takes its time."""


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[] if p in SAMPLE else pytest.mark.full) for p in QUICK]
)
def test_blocks_run(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", SLOW)
def test_slow_blocks_run(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, "--slow")


def each_block() -> Iterator[tuple[str, Block]]:
    """Every block and where it stands."""
    for page, found in PAGES.items():
        for block in found:
            yield f"{page}:{block.line}", block


def test_blocks_say_what_they_are() -> None:
    for where, block in each_block():
        assert block.language in RUN + SHOWN, f"{where}: language {block.language!r}"
        assert set(block.marks) <= set(MARKS), f"{where}: unknown marks {block.marks}"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of a shell block, its words without comments."""
    for where, block in each_block():
        if block.language == "sh":
            for line in block.source.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield where, words


def known_commands() -> dict[str, click.Command]:
    """The commands of ``pahq`` by name."""
    for entry in entry_points(group="pahq.commands"):
        if entry.name not in {command.name for command in app.registered_commands}:
            app.command(entry.name)(entry.load())
    group = get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def test_flags_of_pahq_exist() -> None:
    known, seen = known_commands(), 0
    for where, words in commands():
        # torchrun starts it as a module
        called = [i for i, word in enumerate(words) if word in ("pahq", "pahq_plugin")]
        if not called or len(words) == called[0] + 1 or words[called[0] + 1].startswith("-"):
            continue
        name, *rest = words[called[0] + 1 :]
        assert name in known, f"{where}: no command {name!r}"
        flags = {"--help", *(flag for option in known[name].params for flag in option.opts)}
        flags |= {flag for option in known[name].params for flag in option.secondary_opts}
        unknown = [word for word in rest if word.startswith("--") and word not in flags]
        assert not unknown, f"{where}: pahq {name} has no {unknown}"
        seen += 1
    assert seen > 10


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for where, words in commands():
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(named) <= targets, f"{where}: make {named}"


def test_extras_that_are_installed_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for where, words in commands():
        for extras in re.findall(r"\[([^\]]+)\]", " ".join(words) if words[0] == "pip" else ""):
            missing = set(extras.split(",")) - set(project["optional-dependencies"])
            assert not missing, f"{where}: no extra {missing}"


def test_benchmarks_that_pages_name_exist() -> None:
    for page in pages():
        for module in re.findall(r"python -m\s+(benchmarks\.\w+)", page.read_text(encoding="utf-8")):
            path = REPOSITORY / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (page, module)


def test_python_that_is_not_run_is_python() -> None:
    for where, block in each_block():
        if block.language == "python":
            compile(block.source, where, "exec")


def test_toml_and_plans_can_be_read(tmp_path: Path) -> None:
    for _, block in each_block():
        if block.language == "toml":
            content = tomllib.loads(block.source)
            if block.title == "plan.toml":
                make_plan(content, tmp_path)
