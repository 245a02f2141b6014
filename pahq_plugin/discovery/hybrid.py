"""The hybrid policy: a format for each part of each block, chosen by its cost in accuracy.

The PAHQ paper (arXiv 2510.23264) lists hybrid formats and the automatic detection of critical components
as future work. Here both come from one calibration on the given model and prompts:

1. On a seeded sample of edges that matter, measure the effect in FP32, and again with a single part of
   a single block in low precision. The *error* of that part is the root mean square over the sample of
   ``|low - exact| / max(|exact|, threshold)``.
2. Start with every part in its configured format. The rounding errors of different parts are
   independent, so their squares add up. While the root of the sum exceeds the budget, give the part
   with the largest error the next wider format: 16 bits, then FP32.
3. Measure the error of the whole assignment, and continue widening if it still exceeds the budget.

The errors show which components are critical; they are kept in the run's statistics.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pahq_plugin.engines.protocol import Engine
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge
from pahq_plugin.precision.config import DEFAULT_BUDGET, UNEMBED, PrecisionConfig
from pahq_plugin.precision.formats import get_format

log = logging.getLogger(__name__)

SAMPLE = 8
"""Number of edges in the sample."""

DRAWN = 64
"""Number of edges drawn to find the sample."""

WIDER = {8: "bf16", 16: "fp32"}
"""The next wider format, by the number of bits."""

ErrorOf = Callable[[dict[str, str]], float]
"""Maps formats by part (all other parts in FP32) to their error."""


@dataclass(frozen=True)
class Assignment:
    """What the calibration chose.

    Attributes:
        formats: by part, for example ``{"blocks.0.qkv": "int8"}``.
        errors: error of each part alone, in its configured format.
        error: measured error of the whole assignment.
    """

    formats: dict[str, str]
    errors: dict[str, float]
    error: float


def calibrate(
    engine: Engine,
    edges: Sequence[Edge],
    precision: PrecisionConfig,
    cfg: Any,
    threshold: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[PrecisionConfig, Assignment]:
    """Choose formats for ``precision`` and let ``engine`` screen with them.

    Args:
        engine: an engine in its clean state, with no edge removed.
        edges: all edges of the model.
        precision: settings with the ``"hybrid"`` policy.
        cfg: the model's configuration.
        threshold: the search's threshold.
        seed: chooses the sample.
        progress: called with (parts measured, parts in all).

    Raises:
        ConfigError: no assignment with a part in low precision meets the budget.
    """
    sample = _sample(engine, edges, seed)

    def error_of(formats: dict[str, str]) -> float:
        engine.screen_with(_with_formats(precision, formats))
        off = [
            (engine.effects([edge], [False], exact=False)[0] - exact) / max(abs(exact), threshold)
            for edge, exact in sample
        ]
        return math.sqrt(sum(error**2 for error in off) / max(1, len(off)))

    budget = DEFAULT_BUDGET if precision.budget is None else precision.budget
    assignment = assign(configured(precision, cfg), error_of, budget, progress)
    chosen = _with_formats(precision, assignment.formats)
    engine.screen_with(chosen)
    log.info("hybrid: error %.2g of a budget of %.2g", assignment.error, budget)
    return chosen, assignment


def _with_formats(precision: PrecisionConfig, formats: dict[str, str]) -> PrecisionConfig:
    """Return ``precision`` with only these parts in low precision; int4 weights need parts in int8."""
    weights = precision.weights if "int8" in formats.values() else None
    return replace(precision, low="fp32", mlp="fp32", formats=formats, weights=weights)


def configured(precision: PrecisionConfig, cfg: Any) -> dict[str, str]:
    """Return the format of every part that ``precision`` puts in low precision."""
    per_block = ["qkv", "output", "scores", "values"] + ([] if cfg.attn_only else ["mlp"])
    named = [(f"blocks.{i}.{part}", part, i) for i in range(cfg.n_layers) for part in per_block]
    formats = {name: precision.format_of(part, layer) for name, part, layer in named}
    formats[UNEMBED] = precision.format_of(UNEMBED)
    return {name: used.name for name, used in formats.items() if used.is_low}


def assign(
    formats: dict[str, str],
    error_of: ErrorOf,
    budget: float,
    progress: Callable[[int, int], None] | None = None,
) -> Assignment:
    """Widen the formats of the parts with the largest errors until the rest meet the budget.

    Args:
        formats: the configured formats, by part.
        error_of: measures the error of an assignment.
        budget: the largest error allowed.
        progress: called with (parts measured, parts in all).

    Raises:
        ConfigError: no part is left in low precision.
    """
    errors = {}
    for done, (part, name) in enumerate(formats.items()):
        errors[part] = error_of({part: name})
        if progress is not None:
            progress(done + 1, len(formats))
    chosen, left = dict(formats), dict(errors)
    while left:
        if math.sqrt(sum(error**2 for error in left.values())) <= budget:
            total = error_of(chosen)
            if total <= budget:
                return Assignment(chosen, errors, total)
        worst = max(left, key=lambda part: left[part])
        chosen[worst] = WIDER[get_format(chosen[worst]).bits]
        if get_format(chosen[worst]).is_low:
            left[worst] = error_of({worst: chosen[worst]})
        else:
            del left[worst]
    least = min(errors, key=lambda part: errors[part], default=None)
    smallest = "" if least is None else f"; the smallest error is that of {least}, {errors[least]:.2g}"
    raise ConfigError(
        f"budget={budget:g}: every part in low precision exceeds it{smallest}; raise the budget, "
        "or use method 'acdc'"
    )


def _sample(engine: Engine, edges: Sequence[Edge], seed: int) -> list[tuple[Edge, float]]:
    """Draw edges that have an effect; return each with the FP32 effect of removing it alone."""
    drawn = random.Random(seed).sample(list(edges), min(DRAWN, len(edges)))
    measured = ((edge, engine.effects([edge], [False], exact=True)[0]) for edge in drawn)
    found = sorted(((edge, e) for edge, e in measured if e), key=lambda pair: -abs(pair[1]))
    return found[:SAMPLE]
