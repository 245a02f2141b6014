"""Choose and create the engine that answers a question."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

from pahq_plugin.choices import ENGINES
from pahq_plugin.engines.incremental.budget import budget_for
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.incremental.estimating import EstimatingEngine
from pahq_plugin.engines.placement.plan import Plan, plan_memory
from pahq_plugin.engines.protocol import Engine, engine_factory
from pahq_plugin.engines.question import Question
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.errors import ConfigError, DistributedError
from pahq_plugin.host import PatchableModel
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import past_length
from pahq_plugin.models.blocks import unsupported
from pahq_plugin.models.checks import model_device
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import FULL_PRECISION, PrecisionConfig, default_precision
from pahq_plugin.system.processes import World
from pahq_plugin.system.warn import warn


def make_engine(
    question: Question,
    precision: PrecisionConfig,
    stack: ExitStack,
    incremental: type[IncrementalEngine] = EstimatingEngine,
) -> Engine:
    """Create the engine that a question names; ``"auto"`` is the incremental one where it applies.

    Args:
        question: what is measured.
        precision: the precision to screen in.
        stack: contexts that have to stay open as long as the engine are entered on it.
        incremental: the kind of incremental engine.
    """
    name, world = question.engine, question.world
    if name not in ENGINES:
        if world.size > 1:
            raise DistributedError(f"engine={name!r} runs in one process; use engine='incremental'")
        ours = replace(question, engine="auto")
        screening = precision if precision.screens else FULL_PRECISION
        made = engine_factory(name)(
            question, screening, lambda: make_engine(ours, FULL_PRECISION, stack, incremental)
        )
        return stack.enter_context(closing(made)) if hasattr(made, "close") else made  # type: ignore[type-var]
    # With a placement `plan_search` has checked already, and the placement's own hooks load weights.
    objection = None if question.placement else objection_to(question)
    if name == "incremental" and objection:
        warn(f"engine='incremental' does not support {objection}; using engine='host'")
    screening = precision if precision.screens else None
    if name != "host" and not objection:
        return incremental(question, screening)
    prepared = prepare(  # before the model is lent
        question.model, question.loader, list(question.prompts), question.ablation
    )
    if precision.guard != 0 and precision.masters == "auto":
        precision = replace(precision, masters="device")  # every exact decision needs them
    backend = stack.enter_context(mixed_precision(question.model, precision)) if screening else None
    return HostEngine(question, prepared, backend)


def can_estimate(question: Question) -> bool:
    """Return whether the engine that a question names is an `Estimator`."""
    return question.engine in ("auto", "incremental") and objection_to(question) is None


def objection_to(question: Question) -> str | None:
    """Say what in a question the incremental engine does not support; ``None`` if it supports all."""
    if not question.model.is_transformer:
        return "a model that is not a transformer"
    lengths = sorted({batch.clean.shape[1] for batch in question.prompts})
    if len(lengths) > 1:
        return f"batches of different lengths ({lengths})"
    return unsupported(question.model, past_length(question.model) + lengths[0])


def plan_search(question: Question, precision: PrecisionConfig) -> tuple[Plan, PrecisionConfig]:
    """Divide ``max_memory`` between weights, caches and passes, identically in every process.

    Returns:
        The plan, and the precision to screen in: full precision if low copies of the weights do not fit.

    Raises:
        ConfigError: the engine or the model cannot keep to a budget, or the budget is too small.
    """
    engine, world, max_memory = question.engine, question.world, question.max_memory
    assert max_memory is not None
    if engine not in ("auto", "incremental"):
        raise ConfigError(f"engine={engine!r} cannot keep to max_memory; use engine='incremental'")
    objection = objection_to(question)
    if objection:
        raise ConfigError(f"max_memory needs engine='incremental', which does not support {objection}")
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
                f"max_memory={max_memory} leaves no room for the low copies of the weights, and without "
                "them a search with no guard band would decide differently; raise it, or use "
                "method='acdc'"
            )
        warn("low copies of the weights do not fit in max_memory: measuring in full precision")
        precision = FULL_PRECISION
    return plan, precision


def engine_precision(engine: str, model: PatchableModel) -> PrecisionConfig:
    """Return the precision that an engine screens in by default on the model's device."""
    device = model_device(model)
    if engine in ENGINES:
        return default_precision(device)
    return engine_factory(engine).default_precision(device)
