"""The file of FP32 heads beside a graph: ``w_hi`` for every head, in safetensors.

It is read with numpy, one head at a time from a memory map, so that a deployment needs neither PyTorch
nor memory for all heads.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pahq_exporters.description import Description
from pahq_exporters.runtime.arrays import Array
from pahq_plugin.errors import ExportError, one_line
from pahq_plugin.system.files import parse_json

if TYPE_CHECKING:
    from pahq_plugin.host import PatchableModel

HEADER_LIMIT = 100_000_000
"""Largest header in bytes, as in safetensors."""


def write_heads(model: PatchableModel, described: Description, path: Path) -> None:
    """Write ``w_hi`` ``[head, 4, d_model, d_head]`` of every block of the graph."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from pahq_exporters.graph.high import packed_weights

    heads = range(described.n_heads)
    tensors = {
        f"blocks.{layer}": torch.stack([packed_weights(model.blocks[layer].attn, h) for h in heads])
        for layer in range(described.start_layer, described.n_layers)
    }
    try:
        save_file(tensors, str(path), metadata={"id": described.id})
        path.chmod(0o644)  # same as the graph
    except SafetensorError as error:  # also for a full disk
        raise OSError(one_line(error)) from None


class Heads:
    """Reads single heads of the described graph from a file, and refuses a wrong one with an
    `ExportError`."""

    def __init__(self, path: Path, described: Description) -> None:
        self._path = path
        self._shape = (described.n_heads, 4, described.d_model, described.d_head)
        if not path.is_file():
            raise ExportError(
                f"{path} is missing: it holds the FP32 weights of the investigated head; "
                "copy it beside the graph"
            )
        try:
            self._size = path.stat().st_size
            header, start = self._header()
            if header.get("__metadata__", {}).get("id") != described.id:
                raise ExportError(
                    f"{path} belongs to another export; keep it beside the graph it was written with"
                )
            layers = range(described.start_layer, described.n_layers)
            self._offsets = {layer: start + self._offset(header, start, layer) for layer in layers}
            if len(set(self._offsets.values())) != len(layers):
                raise ValueError("two blocks have the same offset")
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            raise ExportError(f"{path} is damaged ({one_line(error)})") from None

    def _header(self) -> tuple[dict[str, Any], int]:
        """Read the header; returns it and the offset of its end, in bytes."""
        with self._path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= min(HEADER_LIMIT, self._size - 8):
                raise ValueError(f"a header of {size} bytes")
            return parse_json(file.read(size)), 8 + size

    def _offset(self, header: dict[str, Any], start: int, layer: int) -> int:
        """Return the offset of a block's heads from the end of the header, in bytes."""
        name = f"blocks.{layer}"
        if name not in header:
            raise ValueError(f"no {name}")
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        if dtype != "F32" or tuple(shape) != self._shape:
            raise ValueError(f"{name} is {dtype} {shape} instead of F32 {list(self._shape)}")
        first, last = header[name]["data_offsets"]
        size, behind = 4 * math.prod(self._shape), self._size - start
        inside = type(first) is int and type(last) is int and 0 <= first <= last <= behind
        if not inside or last - first != size or first % size:  # blocks of equal size, without gaps
            raise ValueError(f"{name} is at {first} to {last} of {behind} bytes")
        return first

    def weights(self, layer: int, head: int) -> Array:
        """Read ``w_hi`` of one head, float32 ``[4, d_model, d_head]``."""
        try:
            whole = np.memmap(self._path, np.float32, "r", self._offsets[layer], self._shape)
        except (ValueError, OSError) as error:
            raise ExportError(f"{self._path} is damaged ({one_line(error)})") from None
        own = np.array(whole[head])
        if not np.isfinite(own).all():
            raise ExportError(f"{self._path} is damaged (head {layer}.{head} holds NaN or infinity)")
        return own
