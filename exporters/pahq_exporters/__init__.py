"""Exports of host models for ONNX Runtime, and of circuits for other tools.

============================  ======================================================================
`export_onnx`                 a host model's patched forward as an ONNX graph (needs ``onnx``)
`OnnxPatcher`                 patching runs on such a graph (needs numpy and ``onnxruntime`` only)
`write_graph_json`            a circuit as the graph JSON of EAP-IG and the MIB benchmark
`read_graph_json`             the other way
============================  ======================================================================

This package may import ``pahq_plugin``; ``pahq_plugin`` never imports it. Names are looked up on first
use, so that a patching run needs nothing of what an export needs.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pahq_exporters.export import export_onnx
    from pahq_exporters.interchange.graph_json import GraphJson, read_graph_json, write_graph_json
    from pahq_exporters.runtime.patcher import OnnxPatcher

_HOMES = {
    "export_onnx": "export",
    "GraphJson": "interchange",
    "OnnxPatcher": "runtime.patcher",
    "read_graph_json": "interchange",
    "write_graph_json": "interchange",
}

__all__ = ["GraphJson", "OnnxPatcher", "export_onnx", "read_graph_json", "write_graph_json"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet unless an application asks


if not TYPE_CHECKING:  # to a type checker a misspelt name would have a type, too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
