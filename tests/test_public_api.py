"""What is public does not change by accident: the list in ``public_api.txt`` (`docs/releasing.md`)."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module

import pytest

from tests.public_api import FILE, PACKAGES, described, listing


def test_the_list_is_what_there_is() -> None:
    expected, found = FILE.read_text(encoding="utf-8"), listing()
    changes = difflib.unified_diff(
        expected.splitlines(), found.splitlines(), "listed", "found", lineterm=""
    )
    assert expected == found, (
        "the public API changed; if that is meant, say so in CHANGELOG.md and run "
        "python -m tests.public_api\n" + "\n".join(changes)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_there_and_annotated(package: str) -> None:
    module = import_module(package)
    assert sorted(module.__all__, key=str) and set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        assert value.__doc__, f"{package}.{name} has no docstring"
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
            assert not bare and signature.return_annotation is not signature.empty, (name, bare)


def test_a_change_shows() -> None:
    def one(a: int, b: str = "x") -> None: ...

    def two(a: int, b: str = "y") -> None: ...

    assert list(described("f", one)) != list(described("f", two))
    assert list(described("f", one)) == ["f(a: 'int', b: 'str' = 'x') -> 'None'"]
