"""ONNX Runtime sessions with the options that these graphs need.

``mode="speed"`` folds low-precision weights into FP32 when the file is loaded: as fast, and as large in
memory, as an FP32 graph. ``mode="memory"`` keeps one byte per weight and dequantises at every use, in
the order in which nodes were written. Fused nodes would run after all dequantisations, so nothing is
fused unless a level is given. ONNX Runtime's default options do neither: they turn products with
dequantised weights into integer products, which changes the numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pahq_plugin.errors import ConfigError, ExportError, one_line
from pahq_plugin.system.warn import warn

if TYPE_CHECKING:
    import onnxruntime

MODES = ("speed", "memory")
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
MOST_THREADS = 999
"""Upper limit, because ONNX Runtime starts as many threads as requested."""

SILENT = 4
"""Log severity: ONNX Runtime raises its errors, so it need not print them."""

LEVELS = ("disable", "basic", "extended", "all")


def open_session(
    path: Path, providers: Sequence[str] | None, mode: str, threads: int | None, level: str | None
) -> onnxruntime.InferenceSession:
    """Load a graph; arguments and errors as in `pahq_exporters.runtime.patcher.OnnxPatcher`.

    Providers are named by short or full name, in order of preference; the CPU always comes last.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise ExportError(
            "onnxruntime is not installed; install the extra: pip install 'pahq-plugin[onnx]'"
        ) from None
    wanted = _names(providers, ort.get_available_providers())
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} must be one of {', '.join(MODES)}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise ConfigError(f"threads={threads!r} must be an integer between 1 and {MOST_THREADS}")
    level = {"speed": "all", "memory": "disable"}[mode] if level is None else level
    if level not in LEVELS:
        raise ConfigError(f"level={level!r} must be one of {', '.join(LEVELS)}")
    if not path.is_file():
        raise ExportError(f"no file {path}; make one with: pahq export")
    if wanted[0] != PROVIDERS["cpu"] and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    options, arguments = _options(ort, mode, threads, level)
    if len(wanted) == 1:
        arguments["enable_fallback"] = 0  # a fallback would print, and retry on the CPU
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted, **arguments)
    except Exception as error:  # many types, all ONNX Runtime's own
        raise ExportError(
            f"{path} is not an ONNX model that ONNX Runtime can load ({one_line(error)})"
        ) from None
    _say_what_we_got(session, wanted)
    return session


def _options(ort: Any, mode: str, threads: int | None, level: str) -> tuple[Any, dict[str, Any]]:
    ort.set_default_logger_severity(SILENT)  # some failures go to this logger
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    name = "ORT_DISABLE_ALL" if level == "disable" else f"ORT_ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
    if threads is not None:
        options.intra_op_num_threads = threads
    if mode == "speed":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options, {}
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return options, {"disabled_optimizers": ["QDQSelectorActionTransformer"]}


def _names(providers: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """Return the full names of providers, the CPU last."""
    given = [providers] if isinstance(providers, str) else providers or ()
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"providers={providers!r} must be a list, such as ['cuda']")
    names = [PROVIDERS.get(str(name).lower(), name) for name in given]
    for short, full in zip(given, names, strict=True):
        if full not in available:
            known = ", ".join(k for k, v in PROVIDERS.items() if v in available)
            gpu = "; install onnxruntime-gpu: pip install 'pahq-plugin[onnx-gpu]'"
            advice = gpu if full in PROVIDERS.values() else ""
            raise ConfigError(f"provider {short!r} is not available here (available: {known}){advice}")
    cpu = PROVIDERS["cpu"]
    return [name for name in names if name != cpu] + [cpu]


def _say_what_we_got(session: Any, wanted: Sequence[str]) -> None:
    """Warn if the first provider did not load: ONNX Runtime falls back without an error."""
    if wanted[0] not in session.get_providers():
        warn(
            f"{wanted[0]} did not load (driver or libraries missing); "
            f"running on {session.get_providers()[0]}"
        )


def default_threads() -> int | None:
    """Return ``OMP_NUM_THREADS`` if it is set: ONNX Runtime's wheel ignores it."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if re.fullmatch("[1-9][0-9]{0,2}", text) else None
