"""Choose and make the engine that answers a question."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

from pahq_plugin.choices import ENGINES
from pahq_plugin.engines.incremental.budget import budget_for
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.placement.plan import Plan, plan_memory
from pahq_plugin.engines.protocol import Engine, engine_factory
from pahq_plugin.engines.question import Question
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.errors import ConfigError, DistributedError
from pahq_plugin.host import (
    PatchableModel,
)
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import (
    past_length,
)
from pahq_plugin.models.blocks import unsupported
from pahq_plugin.models.checks import model_device
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import (
    FULL_PRECISION,
    PrecisionConfig,
    default_precision,
)
from pahq_plugin.system.processes import World
from pahq_plugin.system.warn import warn


def make_engine(question: Question, precision: PrecisionConfig, stack: ExitStack) -> Engine:
    """Make the engine that a question names; ``"auto"`` takes the incremental one where it applies.

    Contexts that the engine needs for as long as it lives are entered on ``stack``.
    """
    name, world = question.engine, question.world
    if name not in ENGINES:
        if world.size > 1:
            raise DistributedError(f"engine={name!r} works in one process; use engine='incremental'")
        ours = replace(question, engine="auto")
        screening = precision if precision.screens else FULL_PRECISION
        made = engine_factory(name)(
            question, screening, lambda: make_engine(ours, FULL_PRECISION, stack)
        )
        return stack.enter_context(closing(made)) if hasattr(made, "close") else made  # type: ignore[type-var]
    # A placement means that `plan_search` has asked already; it brings weights in by hooks of its own.
    objection = None if question.placement else objection_to(question)
    if name == "incremental" and objection:
        warn(f"engine='incremental' cannot do {objection}; using engine='host'")
    screening = precision if precision.screens else None
    if name != "host" and not objection:
        return IncrementalEngine(question, screening)
    prepared = prepare(  # before the model is lent
        question.model, question.loader, list(question.prompts), question.ablation
    )
    if precision.guard != 0 and precision.masters == "auto":
        precision = replace(precision, masters="device")  # they are needed for every exact decision
    backend = stack.enter_context(mixed_precision(question.model, precision)) if screening else None
    return HostEngine(question, prepared, backend)


def objection_to(question: Question) -> str | None:
    """Why the incremental engine cannot be used on these; ``None`` if it can."""
    if not question.model.is_transformer:
        return "the model is no transformer"
    lengths = sorted({batch.clean.shape[1] for batch in question.prompts})
    if len(lengths) > 1:
        return f"batches of different lengths ({lengths})"
    return unsupported(question.model, past_length(question.model) + lengths[0])


def plan_search(question: Question, precision: PrecisionConfig) -> tuple[Plan, PrecisionConfig]:
    """Divide ``max_memory`` between weights, caches and passes, in every process alike.

    Returns:
        The plan, and what to screen in: nothing, where low copies of the weights find no room.

    Raises:
        ConfigError: an engine or a model that cannot keep a budget, or a budget that is too small.
    """
    engine, world, max_memory = question.engine, question.world, question.max_memory
    assert max_memory is not None
    if engine not in ("auto", "incremental"):
        raise ConfigError(f"engine={engine!r} cannot keep max_memory; use engine='incremental'")
    objection = objection_to(question)
    if objection:
        raise ConfigError(f"max_memory needs engine='incremental', which cannot do {objection}")
    device = question.prompts[0].clean.device
    most = World(world.size - 1, world.size)  # no process has more prompts than the last
    shares = [most.share_of(batch) for batch in question.everyone or question.prompts]
    plan = plan_memory(
        question.model, shares, max_memory, precision if precision.screens else None,
        budget_for(device).together, question.ablation.mean_over_dataset,
    )  # fmt: skip
    if precision.screens and not plan.screens:
        if precision.guard == 0:
            raise ConfigError(
                f"max_memory={max_memory} leaves no room for the low copies of the weights, without "
                "which a search without guard band takes other decisions; give it more, or use "
                "method='acdc'"
            )
        warn("low copies of the weights do not fit max_memory: measuring in full precision")
        precision = FULL_PRECISION
    return plan, precision


def engine_precision(engine: str, model: PatchableModel) -> PrecisionConfig:
    """What an engine screens with on the model's device where nothing was asked for."""
    device = model_device(model)
    if engine in ENGINES:
        return default_precision(device)
    return engine_factory(engine).default_precision(device)
