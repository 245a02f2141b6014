"""Three CUDA streams for one forward: load, low and high (the scheduler of PAHQ, arXiv 2510.23264).

``load`` copies weights from host memory, ``low`` multiplies in few bits, ``high`` the part under test in
full precision. Streams are made once and ordered by events alone; the host never waits. On other
devices, and for a name without a stream of its own, work simply runs where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pahq_plugin.choices import StreamName


class Streams:
    """The streams of one device.

    Args:
        device: where the work is.
        names: which of them exist; the others' work stays on the present stream.
    """

    def __init__(self, device: torch.device, names: Sequence[StreamName]) -> None:
        own = names if device.type == "cuda" else ()
        self._own = {name: torch.cuda.Stream(device) for name in own}

    @contextmanager
    def on(self, name: StreamName, *inputs: Tensor) -> Iterator[None]:
        """Queue the body's work on a stream, behind what is queued on the present one.

        Args:
            name: which stream.
            inputs: tensors that the body reads; their memory is not reused before it has.

        An exception in the body leaves the present stream waiting for what was queued before it.
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
        """Let the present stream wait for another one, whose ``outputs`` it is going to read."""
        stream = self._own.get(name)
        if stream is None:
            return
        present = torch.cuda.current_stream(stream.device)
        present.wait_stream(stream)
        for tensor in outputs:
            tensor.record_stream(present)


INLINE = Streams(torch.device("cpu"), ())
"""All work stays where it is."""
