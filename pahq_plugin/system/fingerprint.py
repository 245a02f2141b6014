"""Fingerprints of tensor contents and functions, the same on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

FINGERPRINT_ENTRIES = 2**17
"""Entries widened to 64 bits at a time: few enough to stay in the cache."""


def fingerprint(x: Tensor) -> int:
    """Compute a 64-bit fingerprint: the wrapping sum of the entries' bit patterns times multipliers.

    The multiplier of an entry is the product of a scrambled row index and a scrambled column index,
    so every permutation of entries is noticed. Integer arithmetic makes the value independent of the
    machine and of the number of threads.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = x.detach().contiguous().view(integers[x.element_size()])
    matrix = bits.reshape(-1, x.shape[-1] if x.ndim else 1)
    columns = _multipliers(matrix.shape[1], 1, x.device)
    rows = _multipliers(matrix.shape[0], 2, x.device)
    step = max(1, FINGERPRINT_ENTRIES // max(1, matrix.shape[1]))
    parts = zip(matrix.split(step), rows.split(step), strict=True)
    return sum(int(((part * columns).sum(dim=1) * row).sum()) for part, row in parts) % 2**64


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _multipliers(count: int, salt: int, device: torch.device) -> Tensor:
    """Return odd pseudo-random 64-bit numbers (SplitMix64's scrambling, Steele et al. 2014). Few lengths
    occur in a model."""
    x = (torch.arange(1, count + 1, device=device) + (salt << 40)) * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return (x ^ (x >> 31)) | 1


DEEPEST = 8
"""Maximum nesting of containers and closures that a digest covers."""


def function_digest(function: Any) -> str:
    """Hash the code, constants, defaults and closure of a function or callable object."""
    content = repr(_content(function, 0))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _content(value: Any, depth: int) -> Any:
    """Describe a value by nested tuples of strings and numbers, free of memory addresses."""
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
