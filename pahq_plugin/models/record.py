"""Read and write ``model.json``, the configuration of a stored model.

It holds TransformerLens' configuration, the fingerprint of every weight, edits that the configuration
does not describe, and a digest of all this. `on_disk` writes the rest of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.models.checks import MACHINE_FIELDS
from pahq_plugin.system.files import read_json, write_text

MODEL_FILE = "model.json"
LAYOUT, EDITED_LAYOUT = 1, 2

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64)}
"""Dtypes of stored models; models in half precision run only on the host's forward, in memory."""

SIZES = {
    "embed.W_E": ("d_vocab", "d_model"),
    "unembed.W_U": ("d_model", "d_vocab_out"),
    "blocks.0.attn.W_Q": ("n_heads", "d_model", "d_head"),
    "blocks.0.mlp.W_in": ("d_model", "d_mlp"),
}
"""The configuration's names for the axes of weights."""


def stored_name(folder: str | Path) -> str | None:
    """Return the name of a model that `save_model` wrote; ``None`` for any other path.

    Raises:
        ModelError: ``model.json`` is damaged.
    """
    if not (Path(folder) / MODEL_FILE).is_file():
        return None
    return read_record(Path(folder))["config"].get("model_name")


def config_record(model: HookedTransformer) -> dict[str, Any]:
    """Return TransformerLens' configuration as JSON values."""
    record = {}
    for name, value in vars(model.cfg).items():
        if name in MACHINE_FIELDS:
            continue
        if name == "n_key_value_heads" and value is not None:
            first: Any = model.blocks[0]
            value = len(first.attn._W_K)  # `adapt` changes the field for KV caches
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        record[name] = value.item() if isinstance(value, np.generic) else value
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``model.json`` of a record, with its digest."""
    record["digest"] = digest(record)
    write_text(folder / MODEL_FILE, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``model.json``: configuration, fingerprints and edits."""
    file = folder / MODEL_FILE
    if not file.is_file():
        raise ModelError(
            f"{folder} does not hold a model; write one with pahq_plugin.save_model(model, folder)"
        )
    try:
        record = read_json(file)
        layout, config, contents = record["layout"], record["config"], record["fingerprints"]
        whole = isinstance(config, dict) and all(type(value) is int for value in contents.values())
        edits = {"numbers": dict, "functions": dict, "buffers": list}
        whole &= all(isinstance(record.get(name, kind()), kind) for name, kind in edits.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged: {one_line(error)}") from error
    if layout not in (LAYOUT, EDITED_LAYOUT):
        raise ModelError(
            f"{file} has layout {layout!r:.80}; this version reads layouts {LAYOUT} and {EDITED_LAYOUT}"
        )
    if not whole or record.get("digest") != digest(record):
        raise ModelError(f"{file} is damaged: its content was modified; save the model again")
    return record


def digest(record: dict[str, Any]) -> str:
    """Hash a record without its digest."""
    values = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def configured(folder: Path, config: dict[str, Any], contents: dict[str, int], n_ctx: int | None) -> Any:
    """Rebuild TransformerLens' configuration of a stored model; refuse damaged values."""
    file = folder / MODEL_FILE
    try:
        values = {name: value for name, value in config.items() if name not in MACHINE_FIELDS}
        values["dtype"] = DTYPES[values["dtype"]]
        cfg: Any = HookedTransformerConfig(**values, init_weights=False, device="cpu")
    except Exception as error:  # TransformerLens may raise anything on values from a file
        raise ModelError(f"{file} is damaged: {one_line(error)}") from error
    if type(cfg.n_layers) is not int or not 1 <= cfg.n_layers <= len(contents):
        raise ModelError(f"{file} is damaged: n_layers={cfg.n_layers!r} with {len(contents)} weights")
    if type(cfg.n_ctx) is not int or cfg.n_ctx < 1:
        raise ModelError(f"{file} is damaged: n_ctx={cfg.n_ctx!r}")
    if n_ctx is not None:
        if not 1 <= n_ctx <= cfg.n_ctx:
            raise ModelError(f"n_ctx={n_ctx} must be between 1 and {cfg.n_ctx}, the model's context")
        cfg.n_ctx = n_ctx
    return cfg


def check_sizes(file: Path, cfg: Any, weights: dict[str, Tensor]) -> None:
    """Refuse a configuration that does not match the weights, or whose masks would not fit into memory,
    before anything of that size is allocated."""
    for name, fields in SIZES.items():
        shape = tuple(weights[name].shape) if name in weights else None
        optional = name == "blocks.0.mlp.W_in"  # attention only, or experts
        if shape != tuple(getattr(cfg, field) for field in fields) and not (optional and shape is None):
            raise ModelError(f"{file} is damaged: {name} is {shape}, expected ({', '.join(fields)})")
    experts = {name.split(".")[4] for name in weights if ".experts." in name}
    if (cfg.num_experts or 0) != len(experts):
        raise ModelError(
            f"{file} is damaged: num_experts={cfg.num_experts!r} with {len(experts)} experts"
        )
    grouped = 1 if cfg.n_key_value_heads is None else cfg.n_key_value_heads
    rotary = 0 if cfg.rotary_dim is None else cfg.rotary_dim
    are_counts = type(grouped) is type(rotary) is int
    if not are_counts or not 1 <= grouped <= cfg.n_heads or rotary > cfg.d_head:
        raise ModelError(f"{file} is damaged: n_key_value_heads={grouped!r} or rotary_dim={rotary!r}")
    masks = cfg.n_layers * cfg.n_ctx**2
    if masks > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        raise ModelError(
            f"attention masks for n_ctx={cfg.n_ctx} positions take {masks / 1e9:,.1f} GB; pass "
            "open_model(folder, n_ctx=...) with the length of your longest prompts"
        )
