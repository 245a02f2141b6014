"""One run in several processes, on one machine or many: prompts are shared out, losses added up.

1. Every process holds the model and takes its share of each batch's prompts.
2. Losses of a pass are gathered from all processes and added in the order of ranks, so that every
   process sees the same bits and takes the same decisions; nothing else is exchanged but which
   candidates change anything.
3. The first process alone writes files.

Started by ``torchrun``, or inside any initialised ``torch.distributed`` group. When a process dies, its
connections close and the others stop with a `DistributedError`.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pahq_plugin import errors
from pahq_plugin.errors import DistributedError, MetricError, PahqError, one_line

Value = TypeVar("Value")
Batch = TypeVar("Batch", bound=Any)
"""A batch of the host's prompts."""

MEETING = 25
"""Seconds that a process waits at the start for the others to come; `PAHQ_MEETING` says otherwise, where
loading takes its time."""

PATIENCE = timedelta(minutes=30)
"""How long it waits later for one that lives but does not answer; a death is noticed at once."""


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: which one this is.
        size: how many there are.
        device: where tensors have to be to be exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share_of(self, batch: Batch) -> Batch:
        """This process's prompts of a batch.

        Raises:
            DistributedError: fewer prompts than processes.
        """
        if self.size == 1:
            return batch
        if len(batch.clean) < self.size:
            raise DistributedError(
                f"a batch of {len(batch.clean)} prompts cannot be shared by {self.size} processes; "
                "start fewer, or pass a larger batch_size"
            )
        return type(batch)(
            key=batch.key,
            batch_diverge_idx=batch.batch_diverge_idx,
            clean=self._part(batch.clean),
            corrupt=self._part(batch.corrupt),
            answers=self._part(batch.answers),
            wrong_answers=self._part(batch.wrong_answers),
        )

    def _part(self, values: Any) -> Any:
        """The ``rank``-th of ``size`` nearly equal parts of a tensor or a list."""
        first, last = (len(values) * i // self.size for i in (self.rank, self.rank + 1))
        return values[first:last]

    def total(self, compute: Callable[[], Tensor], count: int) -> Tensor:
        """Sum over all processes, the same bits in each.

        Args:
            compute: this process's summand, FP64 ``[count]``.
            count: its length, the same everywhere.

        Raises:
            MetricError: in every process, where one of them raises it.
        """
        if self.size == 1:
            return compute()
        failure = None
        try:
            own = compute()
        except MetricError as error:  # the others wait for an answer
            own, failure = torch.full((count,), torch.nan, dtype=torch.float64), error
        parts = self._gather(own)
        if any(bool(part.isnan().any()) for part in parts):
            raise failure or MetricError("a loss is not finite in another process")
        return torch.stack(parts).sum(dim=0)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag whether it is up in some process."""
        if self.size == 1 or not flags:
            return list(flags)
        parts = self._gather(torch.tensor(flags, dtype=torch.float64))
        return torch.stack(parts).any(dim=0).tolist()

    def share(self, compute: Callable[[], Value]) -> Value:
        """What the first process computes, in all of them; errors made on purpose, too.

        Values come from the run's own processes, never from a file.
        """
        if self.size == 1:
            return compute()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = compute()
            except PahqError as error:
                answer[1] = type(error).__name__, str(error)
        with _together():
            dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            name, message = answer[1]
            raise getattr(errors, name, PahqError)(message)
        return answer[0]

    def collect(self, value: Value) -> list[Value]:
        """What each process has, in the order of ranks, in all of them; waits for the last."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(values, value)
        return values

    def agree(self, settings: Mapping[str, Any]) -> None:
        """
        Raises:
            DistributedError: in every process, where another one has other settings.
        """
        for rank, others in enumerate(self.collect(dict(settings))):
            pairs = ((key, others.get(key), value) for key, value in settings.items())
            different = next((pair[0] for pair in pairs if not is_same_setting(*pair)), None)
            if different is not None:
                raise DistributedError(
                    f"process {rank} has another {different} than process {self.rank}; start all of "
                    "them with the same model, prompts and options"
                )

    def _gather(self, own: Tensor) -> list[Tensor]:
        own = own.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, own)
        return [part.cpu() for part in parts]


MEASURED = "corrupt_loss"
"""The one setting of a run that is measured, not given: its rounding may differ."""

CLOSE = 1e-4
"""How far two measurements of it are apart at most, relatively; near 0 see `ROUNDING`."""

ROUNDING = 1e-5
"""Of differences of logits in FP32."""


def is_same_setting(name: str, found: object, own: Any) -> bool:
    """Whether a setting that another process or a file has is that of this run."""
    if name == MEASURED and isinstance(found, float):
        return math.isclose(found, own, rel_tol=CLOSE, abs_tol=ROUNDING)
    return found == own


ALONE = World()
"""A run in one process."""


def current_world() -> World:
    """The initialised group of processes, or `ALONE`."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def launched() -> Iterator[World]:
    """The group that ``torchrun`` started this process in, made for the ``with`` block.

    Raises:
        DistributedError: the processes do not find each other, or a variable that is no number.
    """
    if _number("WORLD_SIZE", 1) < 2 or dist.is_initialized():
        yield current_world()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    meeting = _number("PAHQ_MEETING", MEETING)
    try:
        if _number("RANK", 0) > 0 and "MASTER_ADDR" in os.environ:
            _wait_for(os.environ["MASTER_ADDR"], _number("MASTER_PORT", 29500), meeting)
        # What is exchanged is a few numbers: gloo does for GPUs, too.
        dist.init_process_group("gloo", timeout=timedelta(seconds=meeting))
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        raise DistributedError(
            f"the processes of this run do not find each other; start all again: {one_line(error)}"
        ) from error
    dist.distributed_c10d._set_pg_timeout(PATIENCE)
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def _wait_for(host: str, port: int, seconds: float) -> None:
    """Wait until the first process listens.

    PyTorch would try twice, with a pause of half that time between, and say after more than a minute
    that nobody is there.

    Raises:
        OSError: nobody listens within ``seconds``.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _number(variable: str, default: int) -> int:
    """The number that an environment variable holds.

    Raises:
        DistributedError: it holds none.
    """
    text = os.environ.get(variable, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise DistributedError(f"{variable}={text!r} must be a whole number, such as {default}")
    return int(text)


@contextmanager
def _together() -> Iterator[None]:
    """
    Raises:
        DistributedError: another process is gone or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            "another process of this run is gone or does not answer; start all of them again, with the "
            f"same checkpoint to go on: {one_line(error)}"
        ) from error
