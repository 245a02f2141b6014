"""Tensors in files: what goes comes back, and what was written to never goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pahq_plugin.system.fingerprint import fingerprint
from pahq_plugin.system.mapped import (
    is_mapped,
    let_go,
    let_go_if_unchanged,
    mapped_parameter,
    read_mapped,
    spilled,
)

LARGE = (300, 500)  # many pages


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.fixture
def opened(tmp_path: Path) -> tuple[nn.Parameter, torch.Tensor]:
    values = torch.randn(LARGE)
    save_file({"w": values}, tmp_path / "w.safetensors")
    x = read_mapped(tmp_path / "w.safetensors")["w"]
    return mapped_parameter(x, fingerprint(values)), values


def test_what_goes_comes_back(opened: tuple[nn.Parameter, torch.Tensor]) -> None:
    parameter, values = opened
    for _ in range(3):
        assert torch.equal(parameter, values)
        assert let_go_if_unchanged(parameter)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is resident")
def test_letting_go_frees_memory(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4000, 1000)}, tmp_path / "w.safetensors")
    x = read_mapped(tmp_path / "w.safetensors")["w"]
    before = resident_file_bytes()
    assert x.sum() == 4_000_000
    there = resident_file_bytes()
    let_go(x)
    gone = resident_file_bytes()
    assert there - before > 14e6
    assert gone - before < 1e6


def test_what_was_written_to_stays(opened: tuple[nn.Parameter, torch.Tensor]) -> None:
    parameter, values = opened
    parameter[150, 250] = 7.0
    assert not let_go_if_unchanged(parameter)
    assert parameter[150, 250] == 7.0
    assert is_mapped(parameter)
    parameter[150, 250] = values[150, 250]
    assert let_go_if_unchanged(parameter)


def test_the_file_is_never_written_to(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(LARGE)}, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    read_mapped(tmp_path / "w.safetensors")["w"].fill_(1.0)
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_a_parameter_with_other_memory_is_not_mapped(
    opened: tuple[nn.Parameter, torch.Tensor],
) -> None:
    parameter, values = opened
    parameter.data = values
    assert not is_mapped(parameter) and not let_go_if_unchanged(parameter)
    assert not let_go_if_unchanged(nn.Parameter(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [LARGE, (), (0, 3), (5,)])
def test_spilled_tensors_keep_what_is_written(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    values = (100 * torch.randn(shape)).to(dtype)
    x = spilled(values, tmp_path)
    assert x.shape == values.shape and torch.equal(x, values)
    x.add_(1)
    let_go(x)
    assert torch.equal(x, values + 1)
    assert os.listdir(tmp_path) == []  # the file has no name: a kill leaves nothing behind


def test_a_full_disk_is_an_error_not_a_crash(monkeypatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        spilled(torch.zeros(LARGE), tmp_path)
    assert os.listdir(tmp_path) == []
