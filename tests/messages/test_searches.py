"""Messages of searches under way: checkpoints, memory, and losses that are not finite."""

from __future__ import annotations

import inspect
import json
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from attr import evolve
from safetensors import safe_open
from safetensors.numpy import save_file

from pahq_plugin.discovery.saved_progress import METADATA, digest_of
from pahq_plugin.engines.choose import make_engine
from pahq_plugin.errors import CheckpointError, ConfigError, DistributedError, MetricError
from pahq_plugin.host.prompts import loader_of
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.processes import World, _together, _wait_for, launched
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model, tokens

INT8 = PrecisionConfig(low="int8", mlp="int8", kernel="eager")

# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("effects", {"method": "acdc"}),
        ("effects", {"method": "acdc", "engine": "host"}),
        ("effects", {"method": "acdc", "engine": "onnx"}),
        ("settle", {"method": "pahq", "precision": INT8}),
    ],
    ids=["incremental", "host", "onnx", "settled"],
)
def test_a_loss_at_an_edge(where: str, settings: dict[str, Any]) -> None:
    def metric(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        inside = any(frame.function == where for frame in inspect.stack(0))
        return logits.square().mean(dim=-1) * (torch.nan if inside else 1)

    with refused(MetricError, "at edge ", "->", ": metric 'metric' returned nan; losses must be finite"):
        discover(small_model(), loader(), metric=metric, **settings)


# Memory and engines -------------------------------------------------------------------------------


def test_memory_that_is_too_little() -> None:
    with refused(ConfigError, "is too small for this model and these prompts: at least "):
        discover(small_model(), loader(), max_memory=1)
    with pytest.raises(ConfigError) as least:
        discover(small_model(), loader(), max_memory=1)
    nbytes = int(str(least.value).split("at least ")[1].split()[0])
    message = (
        f"max_memory={nbytes} leaves no room for the low copies of the weights, and without them a "
        "search with no guard band would decide differently; raise it, or use method='acdc'"
    )
    with refused(ConfigError, message):
        discover(small_model(), loader(), method="pahq-paper", max_memory=nbytes)


def test_batches_that_no_budget_fits() -> None:
    (batch,) = loader()
    short = evolve(batch, clean=tokens(0, length=4), corrupt=tokens(1, length=4))
    uneven = loader_of([batch, short], loader())
    message = (
        "max_memory needs engine='incremental', which does not support batches of different lengths"
    )
    with refused(ConfigError, message):
        discover(small_model(), uneven, batches=2, max_memory="1GB")


def test_an_engine_of_one_process() -> None:
    question: Any = SimpleNamespace(world=World(0, 2), engine="onnx")
    message = "engine='onnx' runs in one process; use engine='incremental'"
    with ExitStack() as stack, refused(DistributedError, message):
        make_engine(question, INT8, stack)


# Processes ----------------------------------------------------------------------------------------


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("nobody there")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", fail)
    message = "the processes of this run do not find each other; start them all again: nobody there"
    with refused(DistributedError, message), launched():
        pass


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


@pytest.mark.parametrize("port", [None, 99_999])
def test_a_first_process_that_is_not_there(port: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at the end of the meeting: PyTorch, which would wait for another one, is not asked."""
    for name, value in {
        "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()), "PAHQ_MEETING": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: pytest.fail("was asked"))
    with refused(DistributedError, "the processes of this run do not find each other; "), launched():
        pass


def test_a_first_process_that_comes_later() -> None:
    port, listening = free_port(), socket.socket()
    listening.bind(("127.0.0.1", port))
    later = threading.Timer(0.3, listening.listen)
    later.start()
    _wait_for("127.0.0.1", port, 60)
    later.join()
    listening.close()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PAHQ_MEETING"])
@pytest.mark.parametrize("text", ["x", "", "-3", "2.5", "1" * 40])
def test_variables_that_are_no_numbers(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(variable, text)
    with refused(DistributedError, f"{variable}={text!r} must be a whole number, such as "), launched():
        pass


def test_a_process_that_is_gone() -> None:
    message = (
        "another process of this run has died or does not answer; start all of them again with the same "
        "checkpoint to continue: closed"
    )
    with refused(DistributedError, message), _together():
        raise RuntimeError("closed")


# Checkpoints --------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any], dict[str, Any]], object]


def rewritten(path: Path, change: Change, digest: bool) -> None:
    """Change a checkpoint, with a digest that fits it then or with the old one."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = document.pop("digest")
    change(document, tensors)
    document["digest"] = digest_of(document, tensors) if digest else old
    save_file(tensors, path, {METADATA: json.dumps(document)})


CHECKPOINTS: list[tuple[Change, bool, str]] = [
    (
        lambda d, t: d.update(schema="x"),
        True,
        "is not a checkpoint of this version; expected schema 'pahq-",
    ),
    (
        lambda d, t: d["state"].update(evaluations=3),
        False,
        "is damaged: its content does not match its d",
    ),
    (lambda d, t: d.pop("state"), True, "is damaged: a part is missing or of another type"),
    (
        lambda d, t: t["kept"].__setitem__(0, not t["kept"][0]),
        True,
        "is damaged: its decisions do not fit the run",
    ),
    (
        lambda d, t: d["identity"].update(seed=3),
        True,
        "belongs to another run: its seed is 3, not 0; name",
    ),
    (lambda d, t: d["identity"].update(more=3), True, "belongs to another run; name another file"),
]


@pytest.mark.parametrize(("change", "digest", "message"), CHECKPOINTS, ids=[c[-1] for c in CHECKPOINTS])
def test_checkpoints(change: Change, digest: bool, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"

    def search() -> None:
        discover(small_model(), loader(), method="acdc", threshold=0.003, checkpoint=path)

    search()
    rewritten(path, change, digest)
    with refused(CheckpointError, f"{path} {message}"):
        search()
    path.write_bytes(b"x")
    with refused(CheckpointError, f"{path} is not a complete checkpoint: "):
        search()
