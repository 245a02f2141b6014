"""Store models as folders with one file per block, and open them without reading the weights.

``model.json`` holds TransformerLens' configuration, the fingerprint of every weight and the version of
this layout. ``embedding.safetensors``, ``block-000.safetensors``, ... and ``unembedding.safetensors``
hold the weights as in memory, including folded norms. ``tokenizer`` is in Hugging Face's format.

`changes` finds deviations from the configuration. ``model.json`` holds edited numbers (an attention
scale, the eps of a norm) and the names of known activation functions; edited buffers (masks, rotary
tables) lie beside the weights; any other change is refused. Such folders have layout 2, all others
layout 1.

The weights of an opened model are mapped into memory and read from disk on use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import lt
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.models.adapt import check_kind
from pahq_plugin.models.changes import ACTIVATIONS, Change, activation_name, changes, without_weights
from pahq_plugin.models.checks import weight_parameters
from pahq_plugin.models.record import (
    DTYPES,
    EDITED_LAYOUT,
    LAYOUT,
    MODEL_FILE,
    check_sizes,
    config_record,
    configured,
    read_record,
    write_record,
)
from pahq_plugin.system.files import written_whole
from pahq_plugin.system.fingerprint import fingerprint
from pahq_plugin.system.mapped import let_go_if_unchanged, mapped_parameter, read_mapped

TOKENIZER = "tokenizer"
WEIGHTS = re.compile(r"(un)?embedding\.safetensors|block-[0-9]{3,}\.safetensors")
EDITS = ("number", "function", "buffer")
NUMBERS, BUFFERS = (bool, int, float, str), ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Edits that a folder can hold: their kinds, types of numbers, names of buffers."""


def save_model(model: HookedTransformer, folder: str | Path, *, force: bool = False) -> None:
    """Write a model to a folder for `open_model`.

    Args:
        model: on any device, before or after `adapt`; FP32 or FP64.
        folder: created if it does not exist.
        force: replace a model that the folder already holds.

    Raises:
        ModelError: not a `HookedTransformer`, half precision, norms after attention, a weight that is
            not finite, hooks or replaced code, or a folder that already holds a model.
    """
    folder = Path(folder)
    _check_storable(model)
    edits = list(changes(model))
    _check_edits(edits)
    if (folder / MODEL_FILE).exists():
        if not force:
            raise ModelError(f"{folder} already holds a model; pass force=True (--force) to replace it")
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, int] = {}
    by_kind = {kind: {e.path: e.value for e in edits if e.kind == kind} for kind in EDITS}
    tensors = {name: parameter.detach() for name, parameter in weight_parameters(model)}
    tensors |= by_kind["buffer"]
    for file, names in _names_by_file(tensors).items():
        weights = {name: tensors[name].cpu().contiguous() for name in names}
        contents |= {name: fingerprint(weight) for name, weight in weights.items()}
        with written_whole(folder / file) as temporary:
            save_file(weights, temporary)
    tokenizer: Any = model.tokenizer
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / TOKENIZER)
    record = {"layout": LAYOUT, "config": config_record(model), "fingerprints": contents}
    side = "right" if tokenizer is None else tokenizer.padding_side
    if edits or side != "right":
        functions = by_kind["function"].items()
        record |= {
            "layout": EDITED_LAYOUT,
            "numbers": by_kind["number"],
            "functions": {path: activation_name(function) for path, function in functions},
            "buffers": sorted(by_kind["buffer"]),
            "padding_side": side,
        }
    write_record(folder, record)


def open_model(folder: str | Path, *, n_ctx: int | None = None) -> HookedTransformer:
    """Open a model that `save_model` wrote, in evaluation mode, on the CPU.

    Weights are read from disk on use and never written back. Pass the model to `adapt`, and
    ``max_memory`` to `discover`, to limit how much of it is in memory.

    Args:
        folder: the model's folder.
        n_ctx: length of the longest prompts, if shorter than the model's context: each layer of
            TransformerLens holds a mask of ``n_ctx * n_ctx``.

    Raises:
        ModelError: the folder does not hold a model, or the model is damaged or was modified.
    """
    folder = Path(folder)
    record = read_record(folder)
    config, contents = record["config"], record["fingerprints"]
    cfg = configured(folder, config, contents, n_ctx)
    blocks = {name.split(".")[1] for name in contents if name.startswith("blocks.")}
    if blocks != {str(layer) for layer in range(cfg.n_layers)}:
        raise ModelError(f"{folder / MODEL_FILE} is damaged: n_layers={cfg.n_layers} with other blocks")
    files = _names_by_file(contents)
    found = {file: _read(folder / file, names) for file, names in files.items()}
    check_sizes(folder / MODEL_FILE, cfg, {n: x for some in found.values() for n, x in some.items()})
    model = _empty(folder, cfg, record.get("padding_side", "right"))
    parameters, buffers = dict(model.named_parameters()), set(record.get("buffers", ()))
    if parameters.keys() != contents.keys() - buffers:
        odd = min(parameters.keys() ^ (contents.keys() - buffers))
        raise ModelError(f"{folder / MODEL_FILE} is damaged: {odd} is missing or unexpected")
    for file, weights in found.items():
        for name, x in weights.items():
            if name in buffers:
                _put_buffer(model, folder / file, name, x, contents[name])
            else:
                _put(model, name, _checked(folder / file, name, x, contents[name], parameters[name]))
    for name, value in record.get("numbers", {}).items():
        if name not in _numbers(model) or type(value) not in NUMBERS:
            raise ModelError(f"{folder / MODEL_FILE} is damaged: no module has a number {name}")
        _put(model, name, value)
    for name, function in record.get("functions", {}).items():
        if not name.endswith(".mlp.act_fn") or function not in ACTIVATIONS:
            raise ModelError(
                f"{folder / MODEL_FILE} is damaged: no function {function!r:.80} for {name}"
            )
        _put(model, name, ACTIVATIONS[function])
    return model.eval()


def _clear(folder: Path) -> None:
    """Remove the stored model from a folder, and nothing else."""
    (folder / MODEL_FILE).unlink()  # without it the folder does not count as a model
    for file in [file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name)]:
        file.unlink()
    tokenizer = folder / TOKENIZER
    if tokenizer.is_symlink():
        tokenizer.unlink()
    elif tokenizer.is_dir():
        rmtree(tokenizer)


def _check_storable(model: object) -> None:
    check_kind(model)
    assert isinstance(model, HookedTransformer)
    cfg = model.cfg
    if cfg.dtype not in DTYPES.values():
        raise ModelError(f"the model is in {cfg.dtype}; it must be in {' or '.join(DTYPES)}")
    if cfg.use_normalization_before_and_after:
        raise ModelError(
            "a model with norms after attention cannot be searched layer by layer; use it in memory"
        )
    for name, parameter in weight_parameters(model):
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"weights of {name} hold NaN or infinity")


def _check_edits(edits: Iterable[Change]) -> None:
    """Refuse changes of the model that a folder cannot hold."""
    for edit in edits:
        held = {
            "number": type(edit.value) in NUMBERS,
            "buffer": edit.name in BUFFERS,
            "function": edit.name == "act_fn" and activation_name(edit.value) is not None,
        }
        if not held.get(edit.kind, False):
            raise ModelError(f"{edit} cannot be stored; undo that first, or use the model in memory")


def _names_by_file(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of weights by file."""
    files: dict[str, list[str]] = {"embedding.safetensors": [], "unembedding.safetensors": []}
    for name in names:
        path = name.split(".")
        if path[0] == "blocks":
            file = f"block-{int(path[1]):03d}.safetensors"
        else:
            file = f"{'un' if path[0] in ('unembed', 'ln_final') else ''}embedding.safetensors"
        files.setdefault(file, []).append(name)
    return files


def _empty(folder: Path, cfg: Any, padding_side: Any) -> HookedTransformer:
    """Make the model with its tokenizer, without memory for its weights."""
    tokenizer = None
    if (folder / TOKENIZER).is_dir():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder / TOKENIZER, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / TOKENIZER} is damaged: {one_line(error)}") from error
    try:
        return without_weights(
            lambda: HookedTransformer(
                cfg, tokenizer, move_to_device=False, default_padding_side=padding_side
            )
        )
    except ModelError as error:
        reason = one_line(error.__cause__ or error)
        raise ModelError(f"{folder / MODEL_FILE} is damaged: {reason}") from error


def _read(file: Path, names: list[str]) -> dict[str, Tensor]:
    """Map the weights of one file; refuse missing or additional ones."""
    if not names:
        return {}
    try:
        found = read_mapped(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is damaged: {one_line(error)}") from error
    if found.keys() != set(names):
        odd = min(found.keys() ^ set(names))
        raise ModelError(f"{file} is damaged: {odd} is missing or does not belong in it")
    return found


def _checked(file: Path, name: str, x: Tensor, content: int, wanted: nn.Parameter) -> nn.Parameter:
    """Make a parameter of a weight, after checking its shape, dtype and fingerprint."""
    if name == "pos_embed.W_pos" and len(wanted) < len(x):  # a shorter context
        return nn.Parameter(x[: len(wanted)].clone(), requires_grad=False)
    if x.shape != wanted.shape or x.dtype != wanted.dtype:
        raise ModelError(
            f"{file} is damaged: {name} is {x.dtype} {tuple(x.shape)}, not {wanted.dtype} "
            f"{tuple(wanted.shape)}"
        )
    parameter = mapped_parameter(x, content)
    if not let_go_if_unchanged(parameter):
        raise ModelError(f"{file} is damaged: {name} was modified; save the model again")
    return parameter


def _put_buffer(model: HookedTransformer, file: Path, name: str, x: Tensor, content: int) -> None:
    """Replace a buffer that the configuration makes by an edited one; refuse a damaged one."""
    if fingerprint(x) != content:
        raise ModelError(f"{file} is damaged: {name} was modified; save the model again")
    path, _, last = name.rpartition(".")
    wanted = getattr(model.get_submodule(path), last)
    if x.ndim != wanted.ndim or any(map(lt, x.shape, wanted.shape)):
        raise ModelError(f"{file} is damaged: {name} is {tuple(x.shape)}, not {tuple(wanted.shape)}")
    # For a shorter context: TransformerLens reads masks from their end, rotary tables from their start.
    kept = tuple(slice(-n, None) if last == "mask" else slice(n) for n in wanted.shape)
    _put(model, name, x[kept].clone())


def _numbers(model: HookedTransformer) -> set[str]:
    """Return the full names of the numbers that modules hold."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in NUMBERS and not name.startswith("_")
    }


def _put(model: HookedTransformer, name: str, value: Any) -> None:
    """Replace a weight, buffer, number or function of the model."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, value)
