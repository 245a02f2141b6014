"""Make loaders, official circuits and tasks of the host from plain data."""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from auto_circuit.data import load_datasets_from_json

from pahq_plugin.host.types import Edge, OutputSlice, PatchableModel, PromptDataLoader
from pahq_plugin.system.torch_state import random_state_kept

if TYPE_CHECKING:
    from auto_circuit.tasks import Task


OFFICIAL = {
    ("ioi", "gpt2"): ("ioi_official", "ioi_true_edges", "end"),
    ("greater-than", "gpt2"): ("greaterthan_official", "greaterthan_true_edges", None),
    ("docstring", "Attn_Only_4L512W_C4_Code"): ("docstring_official", "docstring_true_edges", "param_3"),
    ("tracr-reverse", "tracr-reverse"): ("tracr.reverse_official", "tracr_reverse_true_edges", None),
    ("tracr-xproportion", "tracr-xproportion"): (
        "tracr.xproportion_official", "tracr_xproportion_official_edges", None,
    ),
}  # fmt: skip
"""The host's module and function of each circuit by problem and model, and the word that it needs."""


def loaders(
    prompts: dict[str, Any],
    batch_size: int,
    n_batches: tuple[int, int],
    device: str = "cpu",
) -> tuple[PromptDataLoader, PromptDataLoader]:
    """Return the host's train and test loader over prompts in its JSON format, in the order given.

    Args:
        prompts: at least ``batch_size * sum(n_batches)`` prompts of token ids, all of one length.
        n_batches: number of batches of the train and the test loader.
    """

    train, test = n_batches
    with tempfile.TemporaryDirectory() as folder, random_state_kept():
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps(prompts), encoding="utf-8")
        return load_datasets_from_json(
            model=None,
            path=path,
            device=torch.device(device),
            prepend_bos=False,
            batch_size=batch_size,
            train_test_size=(train * batch_size, test * batch_size),
            shuffle=False,
        )


def official_edges(problem: str, model: PatchableModel, word_idxs: dict[str, int]) -> set[Edge] | None:
    """Return the host's published circuit for a problem on this model; ``None`` if there is none.

    Circuits exist for GPT-2 small, the 4-layer attention-only model and Tracr's models. ``word_idxs``
    are the positions of the words that a position-wise circuit refers to.
    """
    key, positional = (problem, model.cfg.model_name), model.seq_len is not None
    if key not in OFFICIAL or not model.separate_qkv:
        return None
    module, function, needed_word = OFFICIAL[key]
    if positional and needed_word is not None and needed_word not in word_idxs:
        return None
    found = import_module(f"auto_circuit.metrics.official_circuits.circuits.{module}")
    return getattr(found, function)(model, token_positions=positional, word_idxs=word_idxs)


def register_task(
    name: str,
    key: str,
    model: PatchableModel,
    train_loader: PromptDataLoader,
    test_loader: PromptDataLoader,
    true_edges: set[Edge] | None,
    slice_output: OutputSlice,
) -> Task:
    """Build a complete host ``Task`` and enter it in the host's ``TASK_DICT``.

    A task with the same key is replaced.
    """
    from auto_circuit.tasks import TASK_DICT, Task

    task = Task(
        key=key,
        name=name,
        batch_size=(train_loader.batch_size or 1, test_loader.batch_size or 1),
        batch_count=(len(train_loader), len(test_loader)),
        token_circuit=model.seq_len is not None,
        _model_def=model,
        _dataset_name=key,
        separate_qkv=bool(model.separate_qkv),
        slice_output=slice_output,
    )
    task.device = next(model.parameters()).device
    task._model = model
    task._train_loader = train_loader
    task._test_loader = test_loader
    task._true_edges = true_edges
    task.__init_complete__ = True
    TASK_DICT[key] = task
    return task
