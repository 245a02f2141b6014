"""Examine this machine: versions, device, formats that its hardware multiplies, and which uses of the
package are ready."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

from pahq_plugin.precision.config import default_precision
from pahq_plugin.precision.kernels import cpu_has_vnni, kernels_of
from pahq_plugin.system.files import installed_version

PACKAGES = (
    "pahq-plugin", "auto-circuit", "transformer-lens", "transformers", "torch", "numpy",
    "onnx", "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip
LENS = '"transformer-lens>=2.15,<2.16"'


def examine() -> dict[str, Any]:
    """Return versions, device, formats, default precision, uses and advice, as JSON values."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = default_precision(device)
    return {
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "formats": hardware_formats(device),
        "kernels": {name: kernel.name for name, kernel in kernels_of(device).items()},
        "default_precision": f"heads {precision.low}, MLPs {precision.mlp}",
        "uses": uses(device),
        "advice": _advice(),
    }


def hardware_formats(device: torch.device) -> dict[str, bool]:
    """Return for each format whether ``device`` has instructions that multiply it."""
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


def uses(device: torch.device) -> list[dict[str, Any]]:
    """Return the uses of the package, whether each is ready here (``None`` if not tried), and what it
    requires."""
    formats = hardware_formats(device)
    onnx = has("onnx", "onnxruntime")
    hub = "huggingface.co once, or a filled cache"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        hub += "; HF_HUB_OFFLINE is set, so only what is in the cache can be used"
    found: list[tuple[str, bool | None, str]] = [
        ("circuits: discover, compare", _lens_fits(), f"pip install {LENS}"),
        ("pictures and pages: show --html, compare", True, "nothing else, not even a browser"),
        ("models of the hub: --model gpt2", None, hub),
        ("ONNX: export, run, --engine onnx", onnx, 'pip install "pahq-plugin[onnx]"'),
        (
            "ONNX on a GPU: run --provider cuda",
            onnx and bool(installed_version("onnxruntime-gpu")),
            'pip install "pahq-plugin[onnx-gpu]", without onnxruntime beside it',
        ),
        ("searches on a GPU", device.type == "cuda", "an NVIDIA GPU and a CUDA build of PyTorch"),
        ("FP8 faster than FP32", formats["fp8_e4m3"], "a GPU of compute capability 8.9 (Ada, Hopper)"),
        ("int8 faster than FP32", "int8" in kernels_of(device), "a CPU with AVX512-VNNI"),
        ("several processes: torchrun", torch.distributed.is_available(), "PyTorch with distributed"),
        ("notebooks", has("ipykernel"), "pip install jupyterlab"),
    ]
    return [{"use": use, "ready": ready, "takes": takes} for use, ready, takes in found]


def has(*packages: str) -> bool:
    """Return whether all of ``packages`` can be imported."""
    return all(find_spec(name) is not None for name in packages)


def _lens_fits() -> bool:
    lens = installed_version("transformer-lens")
    return lens is not None and lens.startswith("2.15.")


def _cpu_has(probe: str) -> bool:
    function = getattr(torch.cpu, probe, None)
    return bool(function and function())


def _advice() -> list[str]:
    advice = []
    if not has("onnx", "onnxruntime"):
        advice.append('for ONNX export: pip install "pahq-plugin[onnx]"')
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        advice.append("onnxruntime and onnxruntime-gpu share one import name: uninstall one of the two")
    if not _lens_fits():
        advice.append(f"auto-circuit 1.0.1 needs TransformerLens 2.15: pip install {LENS}")
    return advice
