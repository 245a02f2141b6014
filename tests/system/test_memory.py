"""Memory that runs out is recognised and named, and freed memory goes back to the system."""

from __future__ import annotations

import pytest
import torch

from pahq_plugin.errors import ModelError
from pahq_plugin.system import memory
from pahq_plugin.system.memory import (
    TIDY_BYTES,
    is_out_of_memory,
    memory_shortage_named,
    release_unused,
    tidy_heap,
)

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("unable to mmap 1024 bytes: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the manual"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_counts_as_out_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_shortage_becomes_an_error_of_ours(error: BaseException) -> None:
    with pytest.raises(ModelError, match="max_memory") as caught, memory_shortage_named():
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), memory_shortage_named():
        raise RuntimeError("shapes do not fit")


def test_the_heap_is_as_before_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mallopt`` is told the same two options inside the block and behind it."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "_of_libc", lambda name: lambda *given: told.append(given))
    with pytest.raises(ZeroDivisionError), tidy_heap():
        raise ZeroDivisionError
    inside, behind = dict(told[:2]), dict(told[2:])
    assert inside.keys() == behind.keys() and set(inside.values()) == {TIDY_BYTES}
    assert min(behind.values()) > TIDY_BYTES


def test_a_library_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_libc", lambda name: None)
    with tidy_heap():
        release_unused()
