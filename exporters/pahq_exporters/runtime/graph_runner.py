"""Load a graph, and compute one of its outputs from named inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pahq_exporters.description import METADATA_KEY, Description, from_json
from pahq_exporters.inputs import misfit
from pahq_exporters.runtime.arrays import Array
from pahq_exporters.session import SILENT, default_threads, open_session
from pahq_plugin.errors import ExportError, one_line

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
"""ONNX Runtime's name of a type -> numpy's."""


class GraphRunner:
    """Runs a graph in ONNX Runtime; output buffers are reused while their shapes stay the same.

    Attributes, arguments and errors as in `pahq_exporters.runtime.patcher.OnnxPatcher`.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[str] | None,
        mode: str,
        threads: int | None,
        level: str | None,
    ) -> None:
        self._path = path
        used = default_threads() if threads is None else threads
        self._session = open_session(path, providers, mode, used, level)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.description: Description = from_json(metadata.get(METADATA_KEY), path)
        found = {
            each.name: (TYPES.get(str(each.type), str(each.type)), each.shape)
            for each in self._session.get_inputs()
        }
        wrong = misfit(self.description, found)
        if wrong:
            raise ExportError(f"{path} does not fit its description: {wrong}; export it again")
        self.providers: list[str] = list(self._session.get_providers())
        self._outputs: dict[tuple[str, tuple[int, ...]], Any] = {}

    def run(self, output: str, inputs: dict[str, Any], shape: tuple[int, ...]) -> Array:
        """Compute one output of that shape, float32, and nothing that it does not depend on."""
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, typed(value))
        buffer = self._outputs.get((output, shape))
        if buffer is None:
            self._outputs = {k: v for k, v in self._outputs.items() if k[0] != output}
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
            self._outputs[output, shape] = buffer
        binding.bind_ortvalue_output(output, buffer)
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True
        options.log_severity_level = SILENT
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # several types, all ONNX Runtime's own
            raise ExportError(f"{self._path} cannot be run ({one_line(error)})") from None
        found = np.array(buffer.numpy())
        if not np.isfinite(found).all():
            raise ExportError(
                f"{self._path} gives {output} that are not finite: its weights are damaged"
            )
        return found


def typed(value: Any) -> Array:
    """Convert to a contiguous array, with integers as int64."""
    array = np.asarray(value, order="C")
    return array.astype(np.int64) if array.dtype.kind in "iu" else array
