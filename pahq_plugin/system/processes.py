"""One run in several processes, on one machine or several: prompts are shared out, losses are summed.

1. Every process holds the model and takes its share of each batch's prompts.
2. The losses of a pass are gathered from all processes and summed in rank order, so every process sees
   the same bits and takes the same decisions. Otherwise only the flags of candidates that change
   anything are exchanged.
3. Only the first process writes files.

The processes are started by ``torchrun``, or belong to any initialised ``torch.distributed`` group. When
a process dies, its connections close and the others stop with a `DistributedError`.
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
"""Seconds that a process waits at the start for the others; `PAHQ_MEETING` overrides it if loading is
slow."""

PATIENCE = timedelta(minutes=30)
"""How long a process later waits for one that is alive but silent; a death is noticed at once."""


@dataclass(frozen=True)
class World:
    """The processes of a run; tensors must be on ``device`` to be exchanged."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Return whether this process writes and prints."""
        return self.rank == 0

    def share_of(self, batch: Batch) -> Batch:
        """Return this process's prompts of a batch; refuse a batch with fewer prompts than processes."""
        if self.size == 1:
            return batch
        if len(batch.clean) < self.size:
            raise DistributedError(
                f"a batch of {len(batch.clean)} prompts cannot be shared by {self.size} processes; "
                "start fewer, or pass a larger batch_size"
            )
        first, last = (len(batch.clean) * i // self.size for i in (self.rank, self.rank + 1))
        names = ("clean", "corrupt", "answers", "wrong_answers")
        parts = {name: getattr(batch, name)[first:last] for name in names}
        return type(batch)(key=batch.key, batch_diverge_idx=batch.batch_diverge_idx, **parts)

    def total(self, compute: Callable[[], Tensor], count: int) -> Tensor:
        """Sum a tensor over all processes, bit for bit the same in each.

        ``compute`` returns this process's summand, FP64 ``[count]``. If it raises a `MetricError` in one
        process, all of them raise one.
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
        """Return for each flag whether it is set in any process."""
        if self.size == 1 or not flags:
            return list(flags)
        parts = self._gather(torch.tensor(flags, dtype=torch.float64))
        return torch.stack(parts).any(dim=0).tolist()

    def share(self, compute: Callable[[], Value]) -> Value:
        """Compute a value in the first process and return it in all; a `PahqError` is raised in all.

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
        """Return the values of all processes in rank order, in each process; waits for the last."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(values, value)
        return values

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Raise a `DistributedError` if another process has different settings."""
        for rank, others in enumerate(self.collect(dict(settings))):
            pairs = ((key, others.get(key), value) for key, value in settings.items())
            different = next((pair[0] for pair in pairs if not is_same_setting(*pair)), None)
            if different is not None:
                raise DistributedError(
                    f"process {rank} has a different {different} from process {self.rank}; start all "
                    "processes with the same model, prompts and options"
                )

    def _gather(self, own: Tensor) -> list[Tensor]:
        own = own.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, own)
        return [part.cpu() for part in parts]


MEASURED = "corrupt_loss"
"""The only setting of a run that is measured, so its rounding may differ."""

CLOSE = 1e-4
"""Maximum relative difference between two measurements of it; near 0 see `ROUNDING`."""

ROUNDING = 1e-5
"""Rounding error of logit differences in FP32."""


def is_same_setting(name: str, found: object, own: Any) -> bool:
    """Return whether a setting of another process or a file agrees with this run's."""
    if name == MEASURED and isinstance(found, float):
        return math.isclose(found, own, rel_tol=CLOSE, abs_tol=ROUNDING)
    return found == own


ALONE = World()
"""The only process of a run."""


def current_world() -> World:
    """Return the initialised group of processes, or `ALONE`."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def launched() -> Iterator[World]:
    """Initialise the group that ``torchrun`` started, for the ``with`` block.

    Raises:
        DistributedError: the processes do not find each other, or a variable does not hold a number.
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
        # Only a few numbers are exchanged, so gloo is enough for GPUs, too.
        dist.init_process_group("gloo", timeout=timedelta(seconds=meeting))
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        raise DistributedError(
            f"the processes of this run do not find each other; start them all again: {one_line(error)}"
        ) from error
    dist.distributed_c10d._set_pg_timeout(PATIENCE)
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def _wait_for(host: str, port: int, seconds: float) -> None:
    """Wait until the first process listens; after ``seconds`` raise an `OSError`.

    PyTorch itself would try twice, half that time apart, and fail after more than a minute.
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
    """Read a whole number from an environment variable, or raise a `DistributedError`."""
    text = os.environ.get(variable, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise DistributedError(f"{variable}={text!r} must be a whole number, such as {default}")
    return int(text)


@contextmanager
def _together() -> Iterator[None]:
    """Turn a failed exchange with another process into a `DistributedError`."""
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            "another process of this run has died or does not answer; start all of them again with the "
            f"same checkpoint to continue: {one_line(error)}"
        ) from error
