"""The memory of a process: what a block of work takes is seen, and what it gave back too."""

from __future__ import annotations

import torch

from pahq_plugin.system.meter import cpu_name, memory_above, peak_bytes

MIB = 2**20


def test_the_peak_of_a_block_is_seen_although_it_gives_memory_back() -> None:
    with memory_above() as work:
        torch.ones(64 * MIB, dtype=torch.uint8)
    with memory_above() as rest:
        pass
    # Resident pages of other threads come and go by a few MiB.
    assert 60 * MIB < work.above < 96 * MIB
    assert rest.above < 16 * MIB
    assert peak_bytes(torch.device("cpu")) > 64 * MIB


def test_the_processor_has_a_name_of_one_line() -> None:
    assert cpu_name().strip() == cpu_name() and "\n" not in cpu_name()
