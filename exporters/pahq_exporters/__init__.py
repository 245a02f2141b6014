"""Export host models to ONNX Runtime, and circuits to other tools.

============================  ======================================================================
`export_onnx`                 a host model's patched forward as an ONNX graph (needs ``onnx``)
`OnnxPatcher`                 patched runs of such a graph (needs only numpy and ``onnxruntime``)
`write_graph_json`            write a circuit as the graph JSON of EAP-IG and the MIB benchmark
`read_graph_json`             read such a file
============================  ======================================================================

This package may import ``pahq_plugin``; ``pahq_plugin`` never imports it. Names are imported on first
use, so that a patched run does not need the dependencies of an export.
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

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless configured


if not TYPE_CHECKING:  # else a type checker would accept misspelt names

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
