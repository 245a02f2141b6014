"""Passes that run out of memory are run again with fewer rows, to the same decisions."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pahq_plugin.discovery.discover import discover
from pahq_plugin.engines.incremental import engine as incremental
from pahq_plugin.engines.incremental import passes
from pahq_plugin.engines.incremental.batching import GOOD_PASSES, RowCap
from pahq_plugin.engines.incremental.differences import Differences
from pahq_plugin.errors import ModelError
from pahq_plugin.results.result import Discovery
from tests.helpers.small import loader, small_model
from tests.system.test_memory import ERRORS


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, error: BaseException, until: int = 10**9
) -> list[int]:
    """Passes of more than ``most`` rows fail, until so many have been tried; returns rows of all."""
    original, tried = incremental.Rows, []

    def rows(state: Any, steps: Any, start: Any, n_rows: int, *others: Any) -> Any:
        tried.append(n_rows)
        if n_rows > most and len(tried) <= until:
            raise error
        return original(state, steps, start, n_rows, *others)

    monkeypatch.setattr(incremental, "Rows", rows)
    return tried


def found(method: str) -> Discovery:
    return discover(small_model(), loader(), method=method, threshold=0.003, progress=False)


def kept(result: Discovery) -> list[tuple[str, bool]]:
    return [(decision.edge.name, decision.kept) for decision in result.decisions]


@pytest.mark.parametrize(
    "error",
    [ERRORS[0], *(pytest.param(error, marks=pytest.mark.full) for error in ERRORS[1:])],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("method", ["acdc", "pahq"])
@pytest.mark.parametrize("most", [4, pytest.param(6, marks=pytest.mark.full)])
def test_the_same_decisions(
    most: int, method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = found(method)
    tried = short_of_memory(monkeypatch, most, error)
    assert kept(found(method)) == kept(plenty)
    assert max(tried) > most


@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_what_a_failed_pass_held_is_free_before_the_next(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames hang on the error: on a GPU every retry would find less room than the one before."""
    original, held = incremental.Rows, []
    passes, made = list[list[Any]](), incremental.IncrementalEngine._starts

    def starts(engine: Any, candidates: Any, gone: Any) -> Any:
        assert not any(ref() is not None for earlier in passes for ref in earlier)
        made_here = made(engine, candidates, gone)
        passes.append([weakref.ref(one.delta) for batch in made_here for one in batch.values()])
        return made_here

    def rows(state: Any, steps: Any, start: Any, n_rows: int, *others: Any) -> Any:
        assert [ref for ref in held if ref() is not None] == []
        if n_rows > 4:
            work = torch.ones(3)
            held.append(weakref.ref(work))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(state, steps, start, n_rows, *others)

    monkeypatch.setattr(incremental, "Rows", rows)
    monkeypatch.setattr(incremental.IncrementalEngine, "_starts", starts)
    found(method)
    assert len(held) > 1
    assert any(passes)


def test_passes_grow_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = short_of_memory(monkeypatch, 4, ERRORS[0], until=6)
    found("acdc")
    assert max(tried[6:]) > 4


def test_a_single_row_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0, ERRORS[0])
    with pytest.raises(ModelError, match="memory"):
        found("acdc")


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["commit", "add"])
def test_memory_that_runs_out_while_edges_are_removed(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search ends; one that goes on from its checkpoint comes to the same decisions."""
    model, prompts, file = small_model(), loader(), tmp_path / "checkpoint.safetensors"
    search = partial(
        discover, model, prompts, method="pahq", threshold=0.003, progress=False, checkpoint_every=0
    )
    undisturbed = search()
    owner = {"commit": passes.Pass, "add": Differences}[where]
    original, calls = getattr(owner, where), []

    def short(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        original(*arguments)

    monkeypatch.setattr(owner, where, short)
    with pytest.raises(ModelError, match="batch_size"):
        search(checkpoint=file)
    assert kept(search(checkpoint=file)) == kept(undisturbed)


def test_other_errors_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        found("acdc")


def test_the_cap_by_hand() -> None:
    cap = RowCap(20)
    cap.shrink(MemoryError())
    cap.shrink(MemoryError())
    assert cap.rows == 5
    for _ in range(2 * GOOD_PASSES - 1):  # the second failure asks for twice as many
        cap.passed()
    assert cap.rows == 5
    cap.passed()
    assert cap.rows == 10
    for _ in range(2 * GOOD_PASSES):
        cap.passed()
    assert cap.rows == 20
