"""Stored models: damaged configurations and blocks."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from pahq_plugin.models.on_disk import open_model, save_model
from pahq_plugin.models.record import MODEL_FILE, digest
from tests.fuzz.bench import Bench, holds
from tests.fuzz.hostile import written
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.target import Target
from tests.helpers.families import family_model

MODELS = ("gpt2", "llama-3")


@cache
def folders() -> tuple[dict[str, bytes], ...]:
    """Files of small stored models by name."""
    found = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            save_model(family_model(name), folder)
            found.append({file.name: file.read_bytes() for file in Path(folder).iterdir()})
    return tuple(found)


@cache
def saved(number: int) -> dict[str, torch.Tensor]:
    """Their weights."""
    return dict(family_model(MODELS[number]).named_parameters())


def resealed(text: bytes) -> bytes:
    """The text with a digest that fits, if it is a record."""
    try:
        record = json.loads(text)
        return json.dumps(record | {"digest": digest(record)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text


def check(content: tuple[int, str, bytes], bench: Bench) -> None:
    """What opens has the weights that were saved."""
    number, name, damage = content
    folder = bench.put("model/x", b"").parent
    for file in folder.iterdir():
        file.unlink()
    for file, whole in (folders()[number] | {name: damage}).items():
        bench.put(f"model/{file}", whole)
    model = bench.call(open_model, folder)
    weights: dict[str, Any] = dict(model.named_parameters())
    original = saved(number)
    holds(weights.keys() == original.keys(), "other weights")
    holds(all(torch.equal(p, original[n]) for n, p in weights.items()), "changed weights")


def targets() -> list[Target]:
    """The reader of stored models."""
    kinds = []
    for number, files in enumerate(folders()):
        document = json.loads(files[MODEL_FILE])
        blocks = [file for file in files if file != MODEL_FILE]
        texts = st.one_of(written([document]), written([document]).map(resealed))
        kinds.append(texts.map(lambda text, n=number: (n, MODEL_FILE, text)))
        kinds += [
            damaged_bytes([files[block]]).map(lambda data, n=number, b=block: (n, b, data))
            for block in blocks
        ]
    return [Target("stored", st.one_of(kinds), check, share=0.3, sample=40)]
