"""Batches are drawn in the loader's order, repeated exactly, and told apart by their digest."""

from __future__ import annotations

import attrs
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset, PromptPairBatch

from pahq_plugin.host.prompts import collect_batches, loader_of, prompts_digest
from tests.helpers.small import loader, small_model, tokens


def shuffling(batch_size: int = 2) -> PromptDataLoader:
    answers = [torch.tensor([i]) for i in range(6)]
    dataset = PromptDataset(tokens(0, 6), tokens(1, 6), answers, answers[::-1])
    return PromptDataLoader(dataset, seq_len=6, diverge_idx=0, batch_size=batch_size, shuffle=True)


def test_the_first_batches_or_all() -> None:
    model, prompts = small_model(), shuffling()
    assert [len(collect_batches(model, prompts, count)) for count in (1, 2, None)] == [1, 2, 3]


def test_batches_that_were_drawn_are_repeated_exactly() -> None:
    prompts = shuffling()
    drawn = collect_batches(small_model(), prompts, None)
    made = loader_of(drawn, prompts)
    for _ in range(2):
        again = list(made)
        assert len(again) == 3 and all(a is b for a, b in zip(again, drawn, strict=True))
    assert (made.seq_len, made.diverge_idx, len(made)) == (6, 0, 3)
    assert made.word_idxs == prompts.word_idxs and made.seq_labels == prompts.seq_labels


def changed(**values: object) -> list[PromptPairBatch]:
    (batch,) = loader()
    return [attrs.evolve(batch, **values)]


def test_the_digest_sees_every_part() -> None:
    (batch,) = loader()
    parts = [
        changed(),
        changed(clean=batch.clean.flip(0)),
        changed(corrupt=batch.corrupt.flip(0)),
        changed(answers=batch.wrong_answers),
        changed(wrong_answers=batch.answers),
        changed(clean=batch.clean.int()),
        changed(clean=batch.clean.T),
        [*changed(), *changed()],
    ]
    assert len({prompts_digest(batches) for batches in parts}) == len(parts)
    assert prompts_digest(changed()) == prompts_digest([batch])
    answers = changed(answers=list(batch.answers), wrong_answers=list(batch.wrong_answers))
    assert prompts_digest(answers) == prompts_digest(
        changed(answers=list(batch.answers), wrong_answers=list(batch.wrong_answers))
    )
