"""The file of FP32 heads beside a graph: ``w_hi`` for every head, in safetensors.

It is read with numpy alone, one head at a time from a memory map, so that a deployment needs neither
PyTorch nor memory for all of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pahq_exporters.description import Description
from pahq_plugin.errors import ExportError

if TYPE_CHECKING:
    from pahq_plugin.host import PatchableModel

HEADER_LIMIT = 100_000_000
"""Bytes; safetensors refuses larger headers, too."""


def write_heads(model: PatchableModel, described: Description, path: Path) -> None:
    """Write ``w_hi`` ``[head, 4, d_model, d_head]`` of every block of the graph."""
    import torch
    from safetensors.torch import save_file

    from pahq_exporters.high import packed_weights

    heads = range(described.n_heads)
    tensors = {
        f"blocks.{layer}": torch.stack([packed_weights(model.blocks[layer].attn, h) for h in heads])
        for layer in range(described.start_layer, described.n_layers)
    }
    save_file(tensors, str(path), metadata={"id": described.id})


class Heads:
    """Reads single heads.

    Args:
        path: the file.
        described: the graph that it belongs to.

    Raises:
        ExportError: the file is missing, damaged, or belongs to another graph.
    """

    def __init__(self, path: Path, described: Description) -> None:
        self._path = path
        self._shape = (described.n_heads, 4, described.d_model, described.d_head)
        header, self._start = self._header()
        if header.get("__metadata__", {}).get("id") != described.id:
            raise ExportError(
                f"{path} belongs to another export; keep it beside the graph it was written with"
            )
        self._entries: dict[str, Any] = header

    def _header(self) -> tuple[dict[str, Any], int]:
        if not self._path.is_file():
            raise ExportError(
                f"{self._path} is missing: it holds the FP32 weights of the investigated head; "
                "copy it beside the graph"
            )
        try:
            with self._path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 0 < size <= min(HEADER_LIMIT, self._path.stat().st_size):
                    raise ValueError(f"a header of {size} bytes")
                header = json.loads(file.read(size))
            if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
                raise ValueError("the header is no object")
            return header, 8 + size
        except (ValueError, RecursionError) as error:
            raise ExportError(f"{self._path} is damaged ({error})") from None

    def weights(self, layer: int, head: int) -> np.ndarray[Any, Any]:
        """``w_hi`` of one head, ``[4, d_model, d_head]`` of float32.

        Raises:
            ExportError: the file is damaged.
        """
        try:
            entry = self._entries[f"blocks.{layer}"]
            first, last = entry["data_offsets"]
            if entry["dtype"] != "F32" or tuple(entry["shape"]) != self._shape:
                raise ValueError(f"blocks.{layer} is {entry['dtype']} {entry['shape']}")
            if last - first != 4 * math.prod(self._shape):
                raise ValueError(f"blocks.{layer} has {last - first} bytes")
            whole = np.memmap(self._path, np.float32, "r", self._start + first, self._shape)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ExportError(f"{self._path} is damaged ({error})") from None
        return np.array(whole[head])
