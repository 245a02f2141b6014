"""Prompt files: as the problems read them, and as the exporters do without PyTorch."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pahq_exporters.runtime.prompt_file import read_prompts as read_light
from pahq_plugin.host.tasks import loaders
from pahq_plugin.problems import bundled_model
from pahq_plugin.problems.prompt_files import as_token_ids, read_prompts
from tests.fuzz.bench import Bench, holds
from tests.fuzz.hostile import json_text, written
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.target import Target

PAIR = {"clean": [0, 5, 6, 7], "corrupt": [0, 5, 8, 7], "answers": [9], "wrong_answers": [10, 11]}
TEXT = {
    "clean": "When Mary and",
    "corrupt": "When John and",
    "answers": ["Mary"],
    "wrong_answers": ["John"],
}
IDS: dict[str, Any] = {
    "seq_labels": ["BOS", "a", "b", "c"],
    "word_idxs": {"end": 3},
    "prompts": [PAIR, PAIR, PAIR | {"clean": [0, 1, 2, 3]}],
}
DOCUMENTS: list[Any] = [
    IDS,
    {"prompts": [TEXT, TEXT], "word_idxs": {"end": 2}, "seq_labels": ["x", "y", "z"]},
    {"prompts": [PAIR, PAIR]},
    {"prompts": [TEXT]},
]
FILES = tuple(json_text(document).encode() for document in DOCUMENTS)
INPUTS = st.one_of(written(DOCUMENTS), written(DOCUMENTS), damaged_bytes(FILES))


def check(content: bytes, bench: Bench) -> None:
    """The plugin's reader: ids of the model, of one length, labels and positions that fit them."""
    path, encoder = bench.put("prompts.json", content), bundled_model.encoder()
    data = bench.call(lambda: as_token_ids(read_prompts(path), encoder))
    prompts = data["prompts"]
    length = len(prompts[0]["clean"])
    for prompt in prompts:
        for key, ids in prompt.items():
            holds(ids and all(type(i) is int and 0 <= i < encoder.d_vocab for i in ids), f"{key}: {ids}")
        holds(len(prompt["clean"]) == len(prompt["corrupt"]) == length, "halves of different lengths")
    labels = data["seq_labels"]
    holds(labels is None or all(isinstance(label, str) for label in labels), f"labels {labels!r:.200}")
    holds(labels is None or len(labels) == length, f"{labels and len(labels)} labels of {length} tokens")
    holds(all(0 <= at < length for at in data["word_idxs"].values()), "a word outside the prompt")


def check_loaders(content: bytes, bench: Bench) -> None:
    """What the reader takes, the host makes batches of."""
    path, encoder = bench.put("prompts.json", content), bundled_model.encoder()
    data = bench.call(lambda: as_token_ids(read_prompts(path), encoder))
    if len(data["prompts"]) < 2:
        return
    train, test = bench.call(loaders, data, 1, (1, len(data["prompts"]) - 1))
    for batch in [*train, *test]:
        holds(batch.clean.shape == batch.corrupt.shape == (1, len(data["prompts"][0]["clean"])), "shape")
        holds(int(batch.clean.min()) >= 0 and int(batch.clean.max()) < encoder.d_vocab, "token ids")


def check_light(content: bytes, bench: Bench) -> None:
    """The exporters' reader: integers, all prompts of one length."""
    read = bench.call(read_light, bench.put("prompts.json", content))
    holds(len({len(ids) for ids in [*read.clean, *read.corrupt]}) == 1 and read.clean[0], "lengths")
    for rows in vars(read).values():
        holds(len(rows) == len(read.clean), "rows")
        holds(all(type(i) is int and i >= 0 for ids in rows for i in ids), "token ids")


def targets() -> list[Target]:
    """Both readers, and the host's batches."""
    return [
        Target("prompts", INPUTS, check, files=FILES),
        Target("prompts-loaders", INPUTS, check_loaders, share=0.2, sample=20),
        Target("prompts-light", INPUTS, check_light, files=FILES),
    ]
