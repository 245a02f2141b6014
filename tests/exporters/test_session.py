"""Sessions: their settings, what memory mode takes, and the same numbers at every level."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.session import LEVELS, default_threads
from pahq_plugin.errors import PahqError
from tests.helpers.refused import refused
from tests.helpers.rounded import FULL
from tests.helpers.small import small_model


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_every_level_of_optimisation_gives_the_same_numbers(graph: str, tmp_path: Path) -> None:
    model = small_model()
    path = export_onnx(model, tmp_path / "g.onnx", graph=graph)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    tokens, corrupt = (
        torch.randint(model.cfg.d_vocab, (3, 6), generator=draw).numpy() for _ in range(2)
    )
    found = [
        OnnxPatcher(path, mode=mode, threads=1, level=level).run(tokens, corrupt, edges=["A0.1->A1.2.K"])
        for mode in ("speed", "memory")
        for level in LEVELS
    ]
    size = np.abs(found[0]).max()
    assert all(np.abs(each - found[0]).max() <= 2e-6 * size for each in found[1:])


PEAK = """
import sys
import numpy as np
from pahq_exporters.runtime.patcher import OnnxPatcher
patcher = OnnxPatcher(sys.argv[1], mode=sys.argv[2], threads=1)
patcher.run(np.zeros((1, 2), np.int64))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


def test_memory_mode_takes_less_than_fp32(tmp_path: Path) -> None:
    """Most of this model's weights are those of heads and MLPs: 38 MB in FP32."""
    model = small_model(d_model=512, n_heads=8, d_head=64, d_mlp=2048, n_layers=3)
    export_onnx(model, tmp_path / "low.onnx")
    export_onnx(model, tmp_path / "full.onnx", precision=FULL)
    low, full = (
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(tmp_path / f"{name}.onnx"), mode],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name, mode in (("low", "memory"), ("full", "speed"))
    )
    weights = 4 * 3 * 12 * 512**2
    assert low < full - 0.4 * weights, (low, full, weights)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    *[({"mode": mode}, "mode") for mode in (None, 3, [])],
    *[({"level": level}, "level") for level in (3, [])],
    *[({"threads": n}, "threads") for n in (-1, 1.5, True, "2", 10**12)],
    *[({"providers": p}, "cpu") for p in ("npu", [None], [3], [["cpu"]], ["cpu", "npu"])],
    ({"providers": {"cpu": 1}}, "providers"),
    ({"providers": "cuda"}, "onnxruntime-gpu"),
]


def _available() -> list[str]:
    return onnxruntime.get_available_providers()


@pytest.mark.parametrize(("setting", "word"), SETTINGS)
def test_settings_that_there_are_not(setting: dict[str, Any], word: str, folder: Path) -> None:
    if setting == {"providers": "cuda"} and "CUDAExecutionProvider" in _available():
        pytest.skip("CUDA is there")
    with refused(PahqError, word):
        OnnxPatcher(folder / "dense.onnx", **setting)


@pytest.mark.parametrize("text", ["", "0", "-1", "²", "1.5", "many", "9" * 5000, "4,2"])
def test_a_strange_number_of_threads_counts_for_nothing(text: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert default_threads() is None
