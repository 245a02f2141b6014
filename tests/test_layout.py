"""Tests mirror the sources: each source file has a file of tests of its own.

``pahq_plugin/ROOM/FILE.py`` is tested in ``tests/ROOM/test_FILE.py``, and
``exporters/pahq_exporters/FILE.py`` in ``tests/exporters/test_FILE.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {
    REPOSITORY / "pahq_plugin": "",
    REPOSITORY / "exporters" / "pahq_exporters": "exporters",
}
BY_RULE = {"__init__.py", "__main__.py"}

EXCEPTIONS = {
    "pahq_plugin/host/types.py": "names of the host, imported under one roof",
    "pahq_plugin/models/supported.py": "a table; what it promises is tested with every model family",
}
"""Source files without a test file of their own, and why; at most ten."""


def sources() -> list[str]:
    """Every source file, as a path in the repository."""
    files = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    return [path.relative_to(REPOSITORY).as_posix() for path in files if path.name not in BY_RULE]


def place_of(source: str) -> Path:
    """The file of tests of a source file."""
    package = next(package for package in PACKAGES if (REPOSITORY / source).is_relative_to(package))
    inside = (REPOSITORY / source).relative_to(package)
    return REPOSITORY / "tests" / PACKAGES[package] / inside.with_name(f"test_{inside.name}")


@pytest.mark.parametrize("source", sources())
def test_a_source_file_has_its_tests_or_a_reason(source: str) -> None:
    has_tests = place_of(source).is_file() and "\ndef test_" in place_of(source).read_text("utf-8")
    wanted = place_of(source).relative_to(REPOSITORY)
    if source in EXCEPTIONS:
        assert not has_tests, f"{source} has {wanted}: take it out of EXCEPTIONS"
    else:
        assert has_tests, f"{source} has no tests in {wanted}"


def test_there_are_few_exceptions_and_each_is_a_source_file() -> None:
    assert len(EXCEPTIONS) <= 10 and all(EXCEPTIONS.values())
    assert set(EXCEPTIONS) <= set(sources())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pahq_plugin/errors.py", "tests/test_errors.py"),
        ("pahq_plugin/cli/app.py", "tests/cli/test_app.py"),
        ("pahq_plugin/compare/page/chart.py", "tests/compare/page/test_chart.py"),
        ("exporters/pahq_exporters/export.py", "tests/exporters/test_export.py"),
        ("exporters/pahq_exporters/graph/dense.py", "tests/exporters/graph/test_dense.py"),
    ],
)
def test_places_of_tests(source: str, expected: str) -> None:
    assert source in sources() and place_of(source) == REPOSITORY / expected
