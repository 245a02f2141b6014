"""A model is given back as it was, whatever ends a run, and two runs do not have it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from auto_circuit.utils.graph_utils import patch_mode
from torch import nn
from transformer_lens.hook_points import HookPoint

from pahq_plugin.errors import ConfigError, ModelError
from pahq_plugin.host.lending import borrowed, uninterrupted
from pahq_plugin.host.patching import source_outputs
from tests.helpers.refused import refused
from tests.helpers.searches import discover
from tests.helpers.small import loader, patchable, small_model, tokens, transformer


def hooks_of(model: nn.Module) -> int:
    """How many hooks all modules have, by torch's count and by TransformerLens'."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_torch = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    points = [m for m in model.modules() if isinstance(m, HookPoint)]
    return of_torch + sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points)


def test_hooks_that_an_interrupt_left_are_taken_away() -> None:
    """The host and TransformerLens take theirs away in `finally`, where Ctrl-C may come once more."""
    model = small_model()
    own = model.blocks[1].register_forward_hook(lambda *_: None)
    before = hooks_of(model)
    with pytest.raises(KeyboardInterrupt), borrowed(model):
        model.blocks[0].register_forward_hook(lambda *_: None)
        model.blocks[0].mlp.register_forward_pre_hook(lambda *_: None)
        model.blocks[0].attn.hook_pattern.add_hook(lambda x, hook: x)
        model.blocks[0].attn.hook_pattern.add_hook(lambda x, hook: None, dir="bwd")
        model.blocks[1]._forward_hooks.clear()
        model.blocks[1].register_forward_hook(lambda *_: None)
        raise KeyboardInterrupt
    assert hooks_of(model) == before
    own.remove()
    assert hooks_of(model) == before - 1


@pytest.fixture
def on_interrupt() -> Iterator[Any]:
    """Python's own handler, also where the tests run in the background and have none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_until_the_model_is_given_back(on_interrupt: Any) -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted(on_interrupt):
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_waits_is_not_lost_to_an_error(on_interrupt: Any) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted(on_interrupt):
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_have_no_interrupts(on_interrupt: Any) -> None:
    def body() -> None:
        with uninterrupted(on_interrupt):
            done.append(1)

    done: list[int] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [1]


# Two PatchableModels around one model -------------------------------------------------------------


@pytest.mark.parametrize("method", ["acdc", "pahq", "eap"])
def test_only_the_newer_of_two_works(method: str) -> None:
    """The host finds masks by the names of modules, which are those of the newer."""
    inner = transformer()
    older = patchable(inner)
    expected = discover(small_model(), loader(), method=method)
    newer = patchable(inner)
    with refused(ModelError, "newer"):
        discover(older, loader(), method=method)
    found = discover(newer, loader(), method=method)
    assert [d.kept for d in found.decisions] == [d.kept for d in expected.decisions]


def test_patches_under_way_in_the_older() -> None:
    inner = transformer()
    older = patchable(inner)
    sources = source_outputs(older, tokens(1))
    newer = patchable(inner)
    with patch_mode(older, sources), refused(ConfigError, "patch_mode"):
        discover(newer, loader(), method="acdc")


def test_one_thread_has_the_model_whatever_wraps_it() -> None:
    inner = transformer()
    older = patchable(inner)
    newer = patchable(inner)
    caught: list[str] = []

    def other() -> None:
        try:
            with borrowed(newer):
                pass
        except ConfigError as error:
            caught.append(str(error))

    with borrowed(older):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(caught) == 1 and "thread" in caught[0]
