"""The commands on a GPU, each a process of its own, as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pahq_plugin
from tests.test_distributed import arguments, ends, start

RUN = "from pahq_plugin.cli.app import main; main()"


def pahq(*arguments: object, **variables: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def decisions(folder: Path) -> list[tuple[str, bool]]:
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return [(entry["edge"], entry["kept"]) for entry in record["decisions"]]


def test_doctor_names_the_gpu() -> None:
    found = pahq("doctor", "--json")
    assert found["device"] == torch.cuda.get_device_name()
    ready = {use["use"]: use["ready"] for use in found["uses"]}
    assert ready["searches on a GPU"] is True
    if torch.cuda.get_device_capability() >= (8, 9):
        assert found["kernels"] == {"bf16": "half", "fp16": "half", "fp8_e4m3": "fp8"}
        assert found["default_precision"] == "heads fp8_e4m3, MLPs bf16"


def test_discover_with_and_without_the_gpu(tmp_path: Path) -> None:
    """``CUDA_VISIBLE_DEVICES=`` hides it, ``--device`` names another."""
    chosen = ["discover", "ioi", "--json", "--out"]
    pahq(*chosen, tmp_path / "gpu")
    pahq(*chosen, tmp_path / "cpu", CUDA_VISIBLE_DEVICES="")
    pahq(*chosen, tmp_path / "named", "--device", "cpu")
    assert decisions(tmp_path / "gpu") == decisions(tmp_path / "cpu") == decisions(tmp_path / "named")
    assert json.loads((tmp_path / "gpu" / "result.json").read_text())["settings"]["method"] == "pahq"


def test_a_stored_model_with_and_without_a_budget(tmp_path: Path) -> None:
    problem = pahq_plugin.load_problem("greater-than", device="cpu")
    pahq_plugin.save_model(problem.model.wrapped_model, tmp_path / "model")
    chosen = ["discover", "greater-than", "--model", tmp_path / "model", "--json", "--out"]
    pahq(*chosen, tmp_path / "whole")
    pahq(*chosen, tmp_path / "budget", "--max-memory", "8GB")
    assert decisions(tmp_path / "whole") == decisions(tmp_path / "budget")


def test_compare(tmp_path: Path) -> None:
    pahq(
        "compare", "greater-than", "--methods", "pahq,acdc,eap", "--thresholds", "0.01",
        "--json", "--out", tmp_path / "report",
    )  # fmt: skip
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_export_and_search_in_the_graph(engine: str, tmp_path: Path) -> None:
    chosen = ["discover", "greater-than", "--method", "acdc", "--engine", engine, "--json", "--out"]
    pahq(*chosen, tmp_path / engine)
    pahq(*chosen, tmp_path / "cpu", CUDA_VISIBLE_DEVICES="")
    assert decisions(tmp_path / engine) == decisions(tmp_path / "cpu")
    pahq("export", "greater-than", tmp_path / "g.onnx", "--json")


def test_a_checkpoint_goes_on_on_the_gpu(tmp_path: Path) -> None:
    """Stopped by a signal after its first write; the second start ends with the same decisions."""
    chosen = ["discover", "ioi", "--threshold", "0.0001", "--checkpoint-every", "0", "--json", "--out"]
    pahq(*chosen, tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, chosen), str(tmp_path / "cut")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "cut" / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    pahq(*chosen, tmp_path / "cut")
    assert decisions(tmp_path / "cut") == decisions(tmp_path / "whole")


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_on_one_gpu(size: int, tmp_path: Path) -> None:
    assert {code for code, _ in ends(start(1, arguments(tmp_path / "1")))} == {0}
    assert {code for code, _ in ends(start(size, arguments(tmp_path / "n")))} == {0}
    assert decisions(tmp_path / "n") == decisions(tmp_path / "1")
