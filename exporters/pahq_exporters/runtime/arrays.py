"""Check arrays from users and convert them for a graph; imports only numpy.

Prompts are refused with a `PromptError`, masks with a `ConfigError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pahq_plugin.errors import ConfigError, PahqError, PromptError, one_line

Array = np.ndarray[Any, Any]


def as_array(values: Any, name: str, error: type[PahqError] = PromptError) -> Array:
    """Return ``values`` as an array; raise ``error`` for rows of different lengths and the like."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as reason:
        raise error(f"{name} cannot be made an array ({one_line(reason)})") from None


def token_ids(values: Any, name: str, n_ctx: int, d_vocab: int, seq_len: int | None = None) -> Array:
    """Check and return token ids ``[batch, pos]``, int64."""
    ids = as_array(values, name)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise PromptError(
            f"{name} must be token ids [batch, pos], all prompts of one length; "
            f"got {ids.dtype} of shape {list(ids.shape)}"
        )
    check_length(name, ids.shape[1], n_ctx, seq_len)
    if ids.min() < 0 or ids.max() >= d_vocab:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise PromptError(f"{name}: id {wrong} is outside the vocabulary of {d_vocab}")
    return np.ascontiguousarray(ids, np.int64)


def check_length(name: str, length: int, n_ctx: int, seq_len: int | None) -> None:
    """Refuse prompts of a length that the graph cannot run."""
    if length > n_ctx:
        raise PromptError(f"{name}: {length} tokens exceed the model's context of {n_ctx}")
    if seq_len is not None and length != seq_len:
        raise PromptError(f"{name}: {length} tokens, but the graph has edges for {seq_len} positions")


def floats(values: Any, name: str, shape: tuple[int | None, ...]) -> Array:
    """Check and return finite numbers as float32; ``None`` in ``shape`` means any size but 0."""
    array = as_array(values, name)
    wanted = ["any" if size is None else size for size in shape]
    fits = array.ndim == len(shape) and all(
        got if size is None else size == got for size, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind != "f":
        raise PromptError(
            f"{name} must be numbers of shape {wanted}; got {array.dtype} {list(array.shape)}"
        )
    if not _fit_float32(array):
        raise PromptError(f"{name} holds NaN or infinity, or numbers too large for float32")
    return np.ascontiguousarray(array, np.float32)


def masks(values: Any, one: tuple[int, ...]) -> Array:
    """Check and return a mask of shape ``one``, ``[(pos,) dest, src]``, or several, as float32."""
    array = as_array(values, "mask", ConfigError)
    if array.shape not in (one, (*array.shape[:1], *one)) or not array.size:
        axes = "[dest, src]" if len(one) == 2 else "[pos, dest, src]"
        raise ConfigError(
            f"mask must be {axes} = {list(one)}, or several of these; got {list(array.shape)}"
        )
    if array.dtype.kind not in "fiub" or not _fit_float32(array):
        raise ConfigError("mask must hold finite numbers")
    return np.ascontiguousarray(array, np.float32)


def _fit_float32(array: Array) -> bool:
    return bool((np.abs(array) <= np.finfo(np.float32).max).all())  # also false for NaN
