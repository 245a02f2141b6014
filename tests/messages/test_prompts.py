"""Messages about prompts: files of them, bundled ones, and batches that do not fit a model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from transformer_lens import HookedTransformer

from pahq_plugin.errors import ModelError, ProblemError, PromptError
from pahq_plugin.host.prompts import check_one_shape, collect_batches, loader_of
from pahq_plugin.problems import generated as prompts
from pahq_plugin.problems import load_problem, templates, vocabulary
from pahq_plugin.problems.prompt_files import Encoder, as_token_ids, read_prompts
from pahq_plugin.problems.tracr import tracr_prompts
from tests.helpers.refused import refused
from tests.helpers.small import loader, patchable, small_model, tokens, transformer

ENCODER = Encoder(lambda text: [len(word) for word in text.split()], 0, 10)
GOOD = {"clean": "a bb", "corrupt": "bb a", "answers": ["a"], "wrong_answers": ["bb"]}

FILES: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, 'there are no prompts: the list "prompts" is empty'),
    ({"prompts": [{"clean": "a"}]}, "prompt 0 lacks corrupt, answers, wrong_answers; it needs clean, "),
    (
        {"prompts": [GOOD | {"answers": "a"}]},
        "answers must be a list of words or token ids, not 'a'",
    ),
    (
        {"prompts": [GOOD | {"wrong_answers": []}]},
        "prompt 0: wrong_answers must be a list of words or token ids, not []",
    ),
    (
        {"prompts": [GOOD | {"answers": ["a b"]}]},
        "the answer 'a b' is 2 tokens; it must be one",
    ),
    ({"prompts": [GOOD | {"clean": 3}]}, "prompt 0: expected text or a list of token ids, not 3"),
    ({"prompts": [GOOD | {"clean": [11]}]}, "prompt 0: 11 is not a token id; ids go from 0 to 9"),
    (
        {"prompts": [GOOD | {"clean": "a"}]},
        "prompt 0: clean has 2 tokens and corrupt 3; both need the same number",
    ),
    (
        {"prompts": [GOOD, GOOD | {"clean": "a", "corrupt": "b"}]},
        "prompt 1 has 2 tokens and prompt 0 has 3; all prompts of a file need the same number",
    ),
    ({"prompts": [GOOD], "seq_labels": 3}, '"seq_labels" must be a list with one label per token'),
    ({"prompts": [GOOD], "word_idxs": 3}, '"word_idxs" must map words to token positions'),
    ({"prompts": [GOOD], "seq_labels": ["x"]}, '"seq_labels" holds 1 labels, but prompts have 2 tokens'),
    (
        {"prompts": [GOOD], "word_idxs": {"x": 7}},
        "\"word_idxs\" puts 'x' at 7, but prompts have 2 tokens",
    ),
]


@pytest.mark.parametrize(("data", "message"), FILES, ids=[message for _, message in FILES])
def test_prompts_of_a_file(data: dict[str, Any], message: str) -> None:
    as_token_ids({"prompts": [GOOD]}, ENCODER)
    with refused(PromptError, message):
        as_token_ids(data, ENCODER)


def test_files_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    with refused(PromptError, f"cannot read the prompt file {file}: No such file or directory"):
        read_prompts(file)
    with refused(PromptError, "prompts is a int; name a JSON file in the host's format"):
        read_prompts(3)  # type: ignore[arg-type]
    file.write_text("{")
    with refused(PromptError, f"the prompt file {file} is not JSON: "):
        read_prompts(file)
    file.write_text(json.dumps({"prompts": 3}))
    with refused(PromptError, f'the prompt file {file} has no list "prompts" at its top level'):
        read_prompts(file)


def test_names_of_tasks_and_problems() -> None:
    with refused(ProblemError, "no bundled task 'x'; the known ones are ioi"):
        prompts.generate("x", 1, 0)
    with refused(ProblemError, "no text prompts for 'x'; there are prompts for "):
        templates.text_prompts("x", SimpleNamespace(), 1, 0)
    with refused(ProblemError, "no tracr model 'x'; the known ones are reverse, xproportion"):
        tracr_prompts("x", 0)
    with refused(ProblemError, "no problem 'x'; the known ones are "):
        load_problem("x")
    for size in (0, True, "8", 2.0):
        with refused(ProblemError, f"batch_size must be an integer above 0, not {size!r}"):
            load_problem("ioi", batch_size=size)  # type: ignore[arg-type]
    for device in ("gpu", "cuda:77", 3.5, "meta", "privateuseone"):
        with refused(ProblemError, f"device={device!r} cannot be used here ("):
            load_problem("ioi", device=device)


def test_a_model_that_the_device_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HookedTransformer, "to", short)
    with refused(ModelError, "memory ran out (CUDA out of memory); pass a smaller batch_size, fewer "):
        load_problem("ioi")


def test_numbers_of_bundled_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(PromptError, "the number of prompts must be at least 1, not 0"):
        prompts.generate("ioi", 0, 0)
    monkeypatch.setattr(prompts, "split_of", lambda *content: "test")
    with refused(PromptError, "only 0 of 1 different train prompts of 'ioi' were found"):
        prompts.generate("ioi", 1, 0)


def test_tokenizers_that_split_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    split = SimpleNamespace(single=lambda words, n: words, splits=lambda *parts: False, ids=list)
    with refused(PromptError, "this tokenizer does not split years into century and rest, such as"):
        templates._greater_than(split, Random(0), False)  # type: ignore[arg-type]
    monkeypatch.setattr(templates, "_of_one_kind", lambda *arguments: [])
    monkeypatch.setitem(templates.TEXT_TASKS, "ioi", lambda *arguments: None)
    with refused(PromptError, "only 0 of 3 prompts of 'ioi' fit this tokenizer"):
        templates.text_prompts("ioi", lambda text: text, 3, 0)  # type: ignore[arg-type]


def test_words_of_the_bundled_model() -> None:
    with refused(PromptError, "the bundled model does not know the word 'xyzzy'; its words are "):
        vocabulary.encode(["xyzzy"])
    with refused(PromptError, "token id -1 is outside the vocabulary, 0 to "):
        vocabulary.decode([-1])


# Batches ------------------------------------------------------------------------------------------


def batches(clean: Any, corrupt: Any, size: int = 2) -> PromptDataLoader:
    answers = [torch.tensor([1]) for _ in clean]
    dataset = PromptDataset(clean, corrupt, answers, answers)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=size, shuffle=False)


def given(*found: Any) -> PromptDataLoader:
    """A loader that gives these for batches."""
    return loader_of(found, loader())


BATCHES: list[tuple[dict[str, Any], Any, int | None, str]] = [
    (
        {},
        lambda: batches([], []),
        1,
        "the loader is empty: 0 prompts with a batch size of 2 make less than",
    ),
    ({}, loader, 7, "batches=7, but the loader holds 1"),
    (
        {},
        lambda: batches([tokens()[0], tokens()[0, :4]], [tokens()[0], tokens()[0, :4]]),
        1,
        "prompts of one batch must have one length: ",
    ),
    (
        {},
        lambda: given(SimpleNamespace(clean=tokens(), corrupt=tokens(length=4))),
        1,
        "clean and corrupt prompts differ in length: 6 and 4 tokens; both prompts of a pair need",
    ),
    (
        {},
        lambda: given(1, 2),
        2,
        "the loader yields a int; expected a PromptPairBatch of the host",
    ),
    ({}, loader, 10**30, f"batches={10**30}, but the loader holds 1"),
    *(
        (
            {},
            partial(lambda x: given(SimpleNamespace(clean=x, corrupt=x)), x),
            1,
            message,
        )
        for x, message in (
            (tokens().float(), "clean prompts are torch.float32 of shape [4, 6]; expected token ids"),
            (
                tokens()[0],
                "clean prompts are torch.int64 of shape [6]; expected token ids [prompt, pos]",
            ),
            (tokens()[:, :0], "clean prompts are torch.int64 of shape [4, 0]; expected token ids"),
            (tokens().tolist(), "clean prompts are list; expected token ids [prompt, pos] of int64"),
        )
    ),
    (
        {"seq_len": 4},
        loader,
        1,
        "the graph has edges for seq_len=4 positions, but the prompts have 6",
    ),
    ({"n_ctx": 5}, loader, 1, "prompts of 6 tokens exceed the context of 5"),
    ({"d_vocab": 3}, loader, 1, "is outside the vocabulary of 3"),
    ({"kv_caches": {3: None}}, loader, 1, "batch size 4 has no KV cache; there are caches for 3"),
]


@pytest.mark.parametrize(
    ("changes", "made", "count", "message"), BATCHES, ids=[case[-1] for case in BATCHES]
)
def test_batches_of_a_loader(changes: dict[str, Any], made: Any, count: int, message: str) -> None:
    options = dict(changes)
    seq_len, caches = options.pop("seq_len", None), options.pop("kv_caches", None)
    model = patchable(transformer(**options), seq_len=seq_len) if seq_len else small_model(**options)
    if caches:
        model.kv_caches = caches
    with refused(PromptError, message):
        collect_batches(model, made(), count)


def test_one_size_for_a_mean_over_the_data_set() -> None:
    uneven = [*loader(prompts=3), *loader(prompts=5)]
    with refused(
        PromptError,
        "the loader's batches have 3, 5 prompts; a mean over the data set needs one size; use another "
        "ablation, such as resample",
    ):
        check_one_shape(uneven)


def test_one_length_for_a_mean_over_the_data_set() -> None:
    uneven = [*loader(), *batches(tokens(length=4), tokens(length=4))]
    with refused(
        PromptError,
        "the loader's batches have 4, 6 tokens; a mean over the data set needs one length; use another "
        "ablation, such as resample",
    ):
        check_one_shape(uneven)
