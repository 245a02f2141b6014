"""Three CUDA streams for a forward pass: load, low and high (the scheduler of PAHQ, arXiv 2510.23264).

``load`` copies weights from host memory, ``low`` multiplies in low precision, and ``high`` multiplies
the part under test in full precision. Streams are created once and ordered by events alone; the host
never waits. On other devices, and for a name without its own stream, work runs on the present stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pahq_plugin.choices import StreamName


class Streams:
    """The streams of one device; work for other names than ``names`` stays on the present stream."""

    def __init__(self, device: torch.device, names: Sequence[StreamName]) -> None:
        own = names if device.type == "cuda" else ()
        self._own = {name: torch.cuda.Stream(device) for name in own}

    @contextmanager
    def on(self, name: StreamName, *inputs: Tensor) -> Iterator[None]:
        """Queue the body's work on a stream, after all work queued on the present stream.

        If the body raises, the present stream waits for the work queued until then. The memory of
        ``inputs`` is not reused before the body has read them.
        """
        stream = self._own.get(name)
        if stream is None:
            yield
            return
        present = torch.cuda.current_stream(stream.device)
        stream.wait_stream(present)
        for tensor in inputs:
            tensor.record_stream(stream)
        try:
            with torch.cuda.stream(stream):
                yield
        except BaseException:
            present.wait_stream(stream)
            raise

    def join(self, name: StreamName, *outputs: Tensor) -> None:
        """Make the present stream wait for stream ``name`` before it reads ``outputs``."""
        stream = self._own.get(name)
        if stream is None:
            return
        present = torch.cuda.current_stream(stream.device)
        present.wait_stream(stream)
        for tensor in outputs:
            tensor.record_stream(present)


INLINE = Streams(torch.device("cpu"), ())
"""Runs all work on the present stream."""
