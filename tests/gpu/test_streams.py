"""Streams and masters on a GPU: races, peaks, exceptions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.choices import STREAMS
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.streams import Streams
from tests.helpers.gpu import DEVICE
from tests.helpers.small import LENGTH, VOCABULARY, small_model

PROMPTS = torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("names", [(), ("low",), ("high",), STREAMS])
def test_streams_change_no_logit(names: Any) -> None:
    model = small_model(device=DEVICE)
    prompts = PROMPTS.to(DEVICE)
    edge = min(model.edges, key=lambda edge: edge.name)

    def logits(streams: Any, where: Any) -> torch.Tensor:
        used = PrecisionConfig(streams=streams, masters=where)
        with pahq.mixed_precision(model, used) as lent, torch.no_grad():
            runs = []
            for _ in range(20):  # races show late
                lent.investigate(edge)
                runs.append(model(prompts))
        return torch.stack(runs)

    assert logits(names, "host").equal(logits((), "device"))


def test_masters_in_host_memory_lower_the_peak() -> None:
    model = small_model(d_model=256, d_mlp=2048, device=DEVICE)
    prompts = PROMPTS.to(DEVICE)

    def peak(where: Any) -> int:
        torch.cuda.empty_cache()
        with pahq.mixed_precision(model, PrecisionConfig(masters=where)), torch.no_grad():
            model(prompts)
            torch.cuda.reset_peak_memory_stats()
            model(prompts)
            return torch.cuda.max_memory_allocated()

    assert peak("host") < peak("device")


def test_an_exception_on_a_stream_leaves_the_present_one_in_order() -> None:
    streams = Streams(torch.device(DEVICE), STREAMS)
    x = torch.zeros(1 << 20, device=DEVICE)
    with pytest.raises(RuntimeError, match="stop"):  # noqa: SIM117
        with streams.on("low", x):
            for _ in range(200):
                x += 1
            raise RuntimeError("stop")
    assert float(x.sum()) == 200 * (1 << 20)
