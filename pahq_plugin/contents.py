"""What a function computes, as far as it can be told from what it is made of.

Two functions of one content do the same, unless they read globals that differ.
"""

from __future__ import annotations

import hashlib
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from pahq_plugin.fingerprint import fingerprint

DEEPEST = 8
"""Of containers and closures that are looked into."""


def function_digest(function: Any) -> str:
    """Hash of a function's code, constants, defaults and closure, or of a callable object's."""
    content = repr(_content(function, 0))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _content(value: Any, depth: int) -> Any:
    """Nested tuples of texts and numbers, in which no address in memory stands."""
    if depth > DEEPEST:
        return "..."
    below = depth + 1
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, _contents(value.co_consts, below)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__]
        return value.__module__, _contents([*parts, *cells], below)
    if isinstance(value, MethodType):
        return _contents([value.__func__, value.__self__], below)
    if isinstance(value, BuiltinFunctionType):
        return value.__module__, value.__qualname__
    if isinstance(value, partial):
        return _contents([value.func, value.args, value.keywords], below)
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), fingerprint(value)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return _contents(value, below)
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, _contents(value, below)))
    if isinstance(value, dict):
        return sorted((repr(key), repr(_content(one, below))) for key, one in value.items())
    kind = type(value)
    functions = [one for _, one in sorted(vars(kind).items()) if isinstance(one, FunctionType)]
    own = vars(value) if depth == 0 else {}  # a callable's settings; other objects may hold anything
    return kind.__qualname__, _contents(functions, below) if depth < 2 else (), _content(own, below)


def _contents(values: Any, depth: int) -> tuple[Any, ...]:
    return tuple(_content(value, depth) for value in values)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is bound later
        return False
    return True
