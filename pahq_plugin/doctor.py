"""What this machine has: versions, device, which formats its hardware multiplies, what is missing."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import Any

import torch

from pahq_plugin.config import default_precision
from pahq_plugin.files import installed_version
from pahq_plugin.kernels import cpu_has_vnni, kernels_of

PACKAGES = (
    "pahq-plugin", "auto-circuit", "transformer-lens", "transformers", "torch", "numpy",
    "onnx", "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, device, formats, default precision and advice, as JSON values."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = default_precision(device)
    return {
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "formats": hardware_formats(device),
        "kernels": {name: kernel.name for name, kernel in kernels_of(device).items()},
        "default_precision": f"heads {precision.low}, MLPs {precision.mlp}",
        "advice": _advice(),
    }


def hardware_formats(device: torch.device) -> dict[str, bool]:
    """For each format whether ``device`` has instructions that multiply it."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        fp8, bf16, int8 = capability >= (8, 9), capability >= (8, 0), capability >= (7, 5)
        fp16 = True
    else:
        fp8, int8 = False, cpu_has_vnni()
        bf16, fp16 = _cpu_has("_is_avx512_bf16_supported"), _cpu_has("_is_amx_fp16_supported")
    return {
        "fp32": True,
        "bf16": bf16,
        "fp16": fp16,
        "fp8_e4m3": fp8,
        "fp8_e5m2": fp8,
        "int8": int8,
        "int4": False,
    }


def _cpu_has(probe: str) -> bool:
    function = getattr(torch.cpu, probe, None)
    return bool(function and function())


def _advice() -> list[str]:
    advice = []
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        advice.append('for ONNX export: pip install "pahq-plugin[onnx]"')
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        advice.append("onnxruntime and onnxruntime-gpu share one import name: uninstall one of the two")
    lens = installed_version("transformer-lens")
    if lens is None or not lens.startswith("2.15."):
        advice.append('auto-circuit 1.0.1 needs TransformerLens 2.15: pip install '
                      '"transformer-lens>=2.15,<2.16"')  # fmt: skip
    return advice
