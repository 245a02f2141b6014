"""Streams where there are none: the order of work; see gpu/test_streams."""

from __future__ import annotations

import torch

from pahq_plugin.choices import STREAMS
from pahq_plugin.precision.streams import Streams

CPU = torch.device("cpu")


def test_work_on_a_stream_that_is_not_there_runs_where_it_is() -> None:
    streams = Streams(CPU, STREAMS)
    x = torch.ones(2)
    with streams.on("low", x):
        y = x + 1
    streams.join("low", y)
    assert y.tolist() == [2, 2]
