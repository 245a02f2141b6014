"""FP32 weights of low parts in host memory while a model is lent.

As long as only low copies are multiplied, the weights they were made from need not be on the GPU. They
move to pinned host memory; the slices of the investigated head are fetched on the load stream before
they are used. On leaving, the weights are restored bit for bit in new device memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pahq_plugin.precision.streams import Streams

Heads = tuple[int, ...]


class Masters:
    """Where the weights of one lent model are; slices are copied on the load stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._away: dict[str, tuple[nn.Parameter, Tensor, torch.device]] = {}
        self._fetched: dict[tuple[str, Heads | None], Tensor] = {}

    def move_away(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Move weights to host memory; each parameter stays the same object, but becomes empty."""
        for name, parameter in named:
            shared = next((one for one in self._away.values() if one[0] is parameter), None)
            if shared is not None:  # one weight under two names
                self._away[name] = shared
                continue
            device = parameter.device
            host = torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=device.type == "cuda")
            host.copy_(parameter.detach())
            self._away[name] = parameter, host, device
            parameter.data = parameter.data.new_empty(0)

    def bring_back(self) -> None:
        """Undo `move_away`, even if it raised an exception."""
        self._fetched.clear()
        while self._away:
            _, (parameter, host, device) = self._away.popitem()
            parameter.data = host.to(device)

    def is_away(self, name: str) -> bool:
        """Return whether a weight is in host memory."""
        return name in self._away

    def keep_only(self, wanted: Iterable[tuple[str, Heads | None]]) -> None:
        """Fetch slices before they are used, by weight and heads (``None`` for all), and free all
        others."""
        keys = [key for key in wanted if key[0] in self._away]
        before = self._fetched
        self._fetched = {key: before[key] if key in before else self._fetch(*key) for key in keys}

    def get(self, name: str, master: Tensor, heads: Heads | None = None) -> Tensor:
        """Return a weight on its device, ``[head, d_in, d_out]``, of some heads or (``None``) of all."""
        if name not in self._away:
            return master if heads is None else master[list(heads)]
        key = (name, heads)
        if key not in self._fetched:
            self._fetched[key] = self._fetch(*key)
        found = self._fetched[key]
        self._streams.join("load", found)
        return found

    def _fetch(self, name: str, heads: Heads | None) -> Tensor:
        _, host, device = self._away[name]
        with self._streams.on("load"):
            if heads is None:
                return host.to(device, non_blocking=True)
            # Slice by slice, since gathering heads on the host would make an unpinned copy.
            out = torch.empty((len(heads), *host.shape[1:]), dtype=host.dtype, device=device)
            for i, head in enumerate(heads):
                out[i].copy_(host[head], non_blocking=True)
            return out
