"""Which engine a search takes, and where its weights are: what does not fit is handed on or refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

import pahq_plugin as pahq
from pahq_plugin.discovery.discover import discover
from pahq_plugin.engines.choose import plan_search
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError, PahqWarning
from pahq_plugin.host import AblationType
from pahq_plugin.metrics import kl_div
from pahq_plugin.precision.config import FULL_PRECISION
from pahq_plugin.system.processes import World
from tests.helpers.architectures import build, random_architecture
from tests.helpers.families import family_loader, family_model
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model

search = partial(discover, progress=False)


def test_what_it_cannot_do_falls_back_with_a_warning() -> None:
    model, loader = build(random_architecture(2, max_edges=60))
    plain = search(model, loader, method="acdc", threshold=1e-3)
    model.wrapped_model.blocks[0].attn.hook_z.add_hook(lambda value, hook: value)
    with pytest.warns(PahqWarning, match=r"blocks\.0\.attn\.hook_z"):
        result = search(model, loader, method="acdc", threshold=1e-3, engine="incremental")
    assert [(d.edge, d.kept) for d in result.decisions] == [(d.edge, d.kept) for d in plain.decisions]
    assert (plain.settings["engine"], result.settings["engine"]) == ("incremental", "host")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_with_uneven_shares_have_one_plan(size: int) -> None:
    """Passes of the same rows: they wait for each other at every one."""
    model, prompts = small_model(), [next(iter(loader(prompts=5)))]
    plans = set()
    for rank in range(size):
        world = World(rank, size)
        task = Question(
            model, loader(), [world.share_of(batch) for batch in prompts], AblationType.RESAMPLE,
            ("kl_div", kl_div), world=world, everyone=prompts,
        )  # fmt: skip
        plans.add(plan_search(replace(task, max_memory=25_000_000), FULL_PRECISION)[0])
    assert len(plans) == 1


def test_what_cannot_keep_a_budget_is_refused() -> None:
    model, loader = pahq.adapt(family_model("gpt2")), family_loader()
    for method in ("eap", "eap-ig", "Random"):
        with refused(ConfigError, method):
            pahq.discover(model, loader, method=method, max_memory="1GB")
    with refused(ConfigError, "max_memory"):
        pahq.discover(pahq.adapt(family_model("gemma-2")), loader, max_memory="1GB")


def test_without_room_for_low_copies_it_measures_in_full_precision() -> None:
    model, loader = pahq.adapt(family_model("gpt2")), family_loader()
    with pytest.raises(ConfigError) as caught:
        pahq.discover(model, loader, max_memory=1)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    needs = dict(progress=False, max_memory=least)
    precision = pahq.PrecisionConfig(low="int8", mlp="int8", kernel="eager")
    with pytest.warns(pahq.PahqWarning, match="full precision"):
        result = pahq.discover(model, loader, precision=precision, **needs)  # type: ignore[arg-type]
    whole = pahq.discover(model, loader, method="acdc", progress=False)
    assert [(d.edge, d.kept) for d in result.decisions] == [(d.edge, d.kept) for d in whole.decisions]
    assert all(d.exact for d in result.decisions) and result.settings["precision"] is None
